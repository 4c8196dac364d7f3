"""Where in the user's code an error arose, read from its traceback."""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pyro
import torch
from torch import nn

from amortized.errors import AmortizedError

_PACKAGES = tuple(
    str(Path(inspect.getfile(package)).parent) for package in (pyro, torch, AmortizedError)
)
_PYTHON = str(Path(inspect.getfile(inspect)).parent)


@dataclass(frozen=True)
class Line:
    """A line of the user's code."""

    file: str
    number: int
    site: str | None
    """The name in the sample statement there, or in the next one."""


def line_of(error: BaseException) -> Line | None:
    """The innermost line of code that is neither Pyro's nor torch's nor this package's."""
    found = None
    for frame, number in _frames(error):
        if _own(frame.f_code.co_filename):
            found = frame.f_code, number
    if found is None:
        return None
    code, number = found
    return Line(Path(code.co_filename).name, number, _site_at(code, number))


def _own(file: str) -> bool:
    """Whether a file is the user's."""
    if file.startswith((*_PACKAGES, "<frozen")):
        return False
    return not file.startswith(_PYTHON) or "site-packages" in file


def is_ours(error: BaseException) -> bool:
    """Whether this package raised an error itself, on purpose or by a mistake of its own."""
    innermost = [frame.f_code.co_filename for frame, _ in _frames(error)][-1:]
    return any(file.startswith(_PACKAGES[-1]) for file in innermost)


def module_of(error: BaseException) -> nn.Module | None:
    """The innermost module whose call raised."""
    found = None
    for frame, _ in _frames(error):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and frame.f_code.co_name == "forward":
            found = owner
    return found


def broadcast_law(error: BaseException) -> Any:
    """The distribution that a plate could not broadcast, if it was that."""
    for frame, _ in _frames(error):
        if frame.f_code.co_filename.endswith("broadcast_messenger.py"):
            return frame.f_locals.get("dist")
    return None


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    yield from traceback.walk_tb(error.__traceback__)


def _site_at(code: CodeType, line: int) -> str | None:
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    calls = sorted(
        (start - 1 + (node.end_lineno or node.lineno), _name_of(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node.func) == "sample"
    )
    return next((name or None for end, name in calls if end >= line), None)


def _called(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _name_of(call: ast.Call) -> str | None:
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
    first = given[0] if given else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
