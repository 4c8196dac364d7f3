"""What the entries of `tests/bad_programs` and `tests/good_programs` are made of.

An entry is a small module. It has ``program()``, which returns a `Pair`, or ``call()``, which must
raise. A bad one says what it expects in ``EXPECTED``: an `Expected` finding or a `Refused` call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from amortized.errors import AmortizedError
from amortized.fit.svi import SVI
from amortized.loss import VariationalLoss


@dataclass(frozen=True)
class Pair:
    """A model, its guide and a batch, as a user would hand them to `am.check` and `am.SVI`."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    batch: Any
    loss: VariationalLoss | None = None

    def svi(self) -> SVI:
        """The harness around it."""
        return SVI(self.model, self.guide, self.loss)


@dataclass(frozen=True)
class Expected:
    """The finding that a wrong program must get.

    ``names`` must occur in the finding's sentence, ``remedy`` in its advice. ``also`` lists codes
    of errors and warnings that the same mistake brings with it; any other would be unrelated.
    ``places`` is how many lines of the programs are wrong, each with a finding of its own.
    """

    code: str
    site: str | None = None
    remedy: str | tuple[str, ...] = ()
    names: str | tuple[str, ...] = ()
    severity: Literal["error", "warning"] = "error"
    also: tuple[str, ...] = ()
    places: int = 1

    def missing_from(self, finding: Any) -> list[str]:
        """What the finding should say and does not."""
        lacking = []
        if finding.severity != self.severity:
            lacking.append(f"severity {self.severity}")
        if self.site is not None and finding.site != self.site:
            lacking.append(f"site {self.site!r}")
        lacking += [
            f"{word!r} in the sentence" for word in words(self.names) if word not in str(finding)
        ]
        lacking += [
            f"{word!r} in the advice" for word in words(self.remedy) if word not in finding.advice
        ]
        return lacking

    def is_named_in(self, sentence: str) -> bool:
        """Whether a sentence of `fit` says where the mistake is: for data, in which rows."""
        wanted = [] if self.site is None else [repr(self.site)]
        if self.site is None or "data" in self.code or self.code == "nan-behind-mask":
            wanted += words(self.names)
        return all(word in sentence for word in wanted)


@dataclass(frozen=True)
class Refused:
    """The error that a wrong call must raise, and words of its sentence."""

    error: type[AmortizedError]
    words: tuple[str, ...]


def words(given: str | tuple[str, ...]) -> list[str]:
    """One word or several, as a list."""
    return [given] if isinstance(given, str) else list(given)


def entries(folder: str, function: str) -> dict[str, ModuleType]:
    """The modules of a folder beside this file that have the function, by name."""
    names = sorted(path.stem for path in (Path(__file__).parent / folder).glob("[a-z]*.py"))
    modules = {name: importlib.import_module(f"tests.{folder}.{name}") for name in names}
    return {name: module for name, module in modules.items() if function in vars(module)}
