"""Sphinx configuration: `sphinx-build -W docs docs/_build/html`."""

project = "amortized"
author = "The amortized developers"
copyright = author
release = "0.1.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "amortized"

# Docstrings set names of things in single backticks.
default_role = "code"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"show-inheritance": True}
napoleon_numpy_docstring = False
