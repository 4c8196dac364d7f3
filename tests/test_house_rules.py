"""The package keeps the rules of the house, and each rule catches what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import house_rules as house

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: house.Rule) -> None:
    assert len(house.sources(ROOT)) > 5, "the package was not found: the rule would hold in vain"
    assert rule(ROOT) == []


def plant(root: Path, files: dict[str, str]) -> Path:
    """A small repository: empty modules of every layer, and the files given."""
    skeleton = ["__init__", "errors", "estimators/__init__", "objectives/__init__", "loss", "plots"]
    skeleton += ["programs/__init__", "programs/runs", "fit/__init__", "fit/svi", "cli"]
    empty = {f"amortized/{name}.py": "" for name in skeleton}
    tests = {
        f"tests/{Path(name).parent}/test_{Path(name).name}.py": ""
        for name in skeleton
        if not name.endswith("__init__")
    }
    for name, text in (empty | tests | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


LONG = "def f():\n" + "    x = 1\n" * 51
DOCUMENTED = 'def f():\n    """' + "word\n" * 60 + '    """\n' + "    x = 1\n" * 50
SIX = (
    "def f(a, b, c, d, e, g, *, h=0, i=0): ...\nclass C:\n    def m(self, a, b, c, d, e, g): ...\n"
)
HOME = "see /" + "home/somebody/notes"

VIOLATIONS: list[tuple[house.Rule, dict[str, str], str]] = [
    (house.layers, {"amortized/errors.py": "import amortized.loss"}, "errors may not import loss"),
    (house.layers, {"amortized/loss.py": "from amortized import fit"}, "may not import fit"),
    (house.layers, {"amortized/loss.py": "from amortized.fit.svi import SVI"}, "import fit"),
    (house.layers, {"amortized/cli.py": "import amortized"}, "cli may not import __init__"),
    (house.layers, {"amortized/objectives/a.py": "import amortized.estimators"}, "estimators"),
    (
        house.layers,
        {"amortized/loss.py": "def f():\n    from amortized.fit import svi  # slow"},
        "loss may not import fit",
    ),
    (house.layers, {"amortized/cli.py": "from amortized import plots"}, "at module level"),
    (house.layers, {"amortized/attic.py": ""}, "'attic' has no layer"),
    (house.absolute_imports, {"amortized/fit/svi.py": "from ..cli import main"}, "relative"),
    (house.plots_are_plain, {"amortized/plots.py": "import torch"}, "plots imports torch"),
    (house.plots_are_plain, {"amortized/plots.py": "from amortized.fit import svi"}, "fit"),
    (
        house.no_cycles,
        {
            "amortized/fit/a.py": "import amortized.fit.b",
            "amortized/fit/b.py": "from amortized.fit.c import x",
            "amortized/fit/c.py": "from amortized.fit import a",
        },
        "fit/b.py: is part of an import cycle",
    ),
    (house.poutine_in_programs, {"amortized/loss.py": "from pyro import poutine"}, "loss.py:1"),
    (house.poutine_in_programs, {"amortized/loss.py": "import pyro.poutine as p"}, "loss.py:1"),
    (
        house.poutine_in_programs,
        {"amortized/loss.py": "from pyro.poutine.messenger import Messenger"},
        "loss.py:1",
    ),
    (
        house.poutine_in_programs,
        {"amortized/loss.py": "import pyro as p\nh = p.poutine.trace"},
        "loss.py:2",
    ),
    (
        house.names_kept_apart,
        {
            "amortized/objectives/elbo.py": "class ELBO: ...",
            "amortized/estimators/a.py": "def f(o):\n    return o.ELBO",
        },
        "estimators/a.py:2: names ELBO of objectives/",
    ),
    (
        house.names_kept_apart,
        {
            "amortized/estimators/a.py": "class Pathwise: ...",
            "amortized/objectives/b.py": "def f(e):\n    return isinstance(e, Pathwise)",
        },
        "objectives/b.py:2: names Pathwise of estimators/",
    ),
    (house.small_files, {"amortized/loss.py": "x = 1\n" * 401}, "loss.py: 401 lines"),
    (house.small_functions, {"amortized/loss.py": LONG}, "f has 51 lines"),
    (house.few_parameters, {"amortized/loss.py": "def f(a, b, c, d, e, g, h): ..."}, "7"),
    (house.no_asserts, {"amortized/loss.py": "def f(x):\n    assert x"}, "loss.py:2"),
    (house.no_hasattr, {"amortized/loss.py": "def f(x):\n    return hasattr(x, 'a')"}, "py:2"),
    (
        house.lazy_imports_explained,
        {"amortized/loss.py": "def f():\n    import json\n    return json"},
        "loss.py:2",
    ),
    (house.no_mutable_globals, {"amortized/loss.py": "cache = {}"}, "mutable global cache"),
    (house.no_mutable_globals, {"amortized/loss.py": "seen: list[int] = []"}, "global seen"),
    (house.no_mutable_globals, {"amortized/loss.py": "import c\nq = c.deque()"}, "global q"),
    (house.no_mutable_globals, {"amortized/loss.py": "def f():\n    global n"}, "global n"),
    (
        house.importing_changes_nothing,
        {"amortized/loss.py": "import torch\ntorch.set_default_dtype(torch.float64)"},
        "call at import",
    ),
    (
        house.abstract_or_final,
        {"amortized/loss.py": "class A: ...\nclass B(A): ..."},
        "B extends A, a final class",
    ),
    (house.no_machine_paths, {"docs/index.md": f"fine\n{HOME}"}, "docs/index.md:2"),
    (house.no_machine_paths, {".ci/run": HOME}, ".ci/run:1"),
    (house.tests_mirror, {"amortized/fit/history.py": ""}, "no tests/fit/test_history.py"),
]


@pytest.mark.parametrize(
    ("rule", "files", "complaint"),
    VIOLATIONS,
    ids=[f"{rule.__name__}-{number}" for number, (rule, _, _) in enumerate(VIOLATIONS)],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, rule: house.Rule, files: dict[str, str], complaint: str
) -> None:
    found = rule(plant(tmp_path, files))
    assert any(complaint in sentence for sentence in found), found


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in VIOLATIONS} == set(house.RULES)


ALLOWED = {
    "amortized/__init__.py": "from amortized.loss import Loss as Loss\n__all__ = ['Loss']",
    "amortized/errors.py": "class A(Exception): ...\nclass B(A): ...",
    "amortized/estimators/base.py": '"""Works under ELBO."""\nfrom amortized.errors import A',
    "amortized/objectives/elbo.py": "from abc import ABC\nclass ELBO(ABC): ...\nclass C(ELBO): ...",
    "amortized/programs/runs.py": "import pyro.poutine\nFOLDED = {'Conv2d': 1}",
    "amortized/loss.py": SIX,
    "amortized/fit/__init__.py": "",
    "amortized/fit/svi.py": (
        "from amortized.loss import Loss\n"
        "def plot():\n    from amortized import plots  # matplotlib is slow to import"
    ),
    "amortized/cli.py": "import typer\napp = typer.Typer()\napp.command()(print)\n" + DOCUMENTED,
    "amortized/plots.py": "import numpy as np\nfrom matplotlib.axes import Axes",
    "tests/estimators/test_base.py": "",
    "tests/objectives/test_elbo.py": "",
    ".venv/lib/notes.txt": HOME,
    "docs/data.md": "/usr/share/datasets and $HOME/work/x and a/work/b",
}


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_passes(tmp_path: Path, rule: house.Rule) -> None:
    assert rule(plant(tmp_path, ALLOWED)) == []
