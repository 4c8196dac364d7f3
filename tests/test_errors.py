"""What a user can meet is one of our errors, and they can be told apart."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import amortized as am
from amortized import errors

PACKAGE = Path(errors.__file__).parent
KINDS = [
    am.ProgramError,
    am.EstimatorError,
    am.UsageError,
    am.NonFiniteError,
    am.CheckpointError,
    am.WorkerError,
]
CHILDREN = [*KINDS, am.DataError]  # bad data are a wrong call, too

# raised and caught inside the package, never shown
INTERNAL = {
    "DeeperPlatesError",
    "MoreRowsError",
    "Interrupted",
    "CaptureError",
    "NotRecordedError",
    "DamagedError",
}
# raised and turned into one of ours in the same file, or built there
SPECIAL = {
    "candidates": {"type(error)"},
    "checkpoint": {"_unreadable"},
    "checkpoint_files": {"BlockingIOError"},
    "checkpoint_metadata": {"ValueError"},
    "checkpoint_values": {"_refused"},
    "mapped": {"ValueError"},
    "moments": {"ValueError"},
    "report": {"CODES[self.errors[0].code]"},
    "survey": {"TypeError"},
    "workers": {"AmortizedError"},  # a process that ended without a word: nobody's mistake
}
# what other protocols ask for: lookups of attributes and keys, and command lines
FOREIGN = {
    "AttributeError",
    "KeyError",
    "NotImplementedError",
    "Exit",
    "BadParameter",
    "StopIteration",
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_one_except_clause_catches_every_kind(kind: type[am.AmortizedError]) -> None:
    with pytest.raises(am.AmortizedError, match="site 'z'"):
        raise kind("site 'z': wrong")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_do_not_catch_each_other(kind: type[am.AmortizedError]) -> None:
    others = [other for other in KINDS if other is not kind]
    assert not any(issubclass(kind, other) for other in others)


def test_every_error_class_is_public() -> None:
    defined = {n for n, v in vars(errors).items() if inspect.isclass(v)}
    assert defined == {kind.__name__ for kind in CHILDREN} | {"AmortizedError", "CheckWarning"}
    assert all(getattr(am, name) is getattr(errors, name) for name in defined)


def raised_names(path: Path) -> set[str]:
    """The classes that a file raises by name; a bare or a passed-on exception is none."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            callee = node.exc.func
            found.add(callee.attr if isinstance(callee, ast.Attribute) else ast.unparse(callee))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_the_package_raises_no_bare_builtin(path: Path) -> None:
    """A ValueError from the depths tells a user neither where nor what to do."""
    ours = {kind.__name__ for kind in CHILDREN} | INTERNAL | FOREIGN
    ours |= SPECIAL.get(path.stem, set())
    assert raised_names(path) <= ours
