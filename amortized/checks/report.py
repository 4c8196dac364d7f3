"""What a check found, as data, as sentences and as a page for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, final

from amortized.errors import (
    AmortizedError,
    DataError,
    EstimatorError,
    NonFiniteError,
    ProgramError,
    UsageError,
)

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Every code, and the error that `Report.raise_errors` raises for it.
CODES: dict[str, type[AmortizedError]] = {
    "missing-in-guide": ProgramError,
    "missing-in-model": ProgramError,
    "duplicate-site": ProgramError,
    "observed-in-guide": ProgramError,
    "observed-latent": ProgramError,
    "guide-factor": ProgramError,
    "nothing-observed": ProgramError,
    "support-mismatch": ProgramError,
    "event-shape-mismatch": ProgramError,
    "undeclared-batch-dim": ProgramError,
    "broadcast-observation": ProgramError,
    "plate-size": ProgramError,
    "batch-size": ProgramError,
    "plate-mismatch": ProgramError,
    "subsample-mismatch": ProgramError,
    "data-plate": UsageError,
    "invalid-parameter": ProgramError,
    "program-raises": ProgramError,
    "erased-axes": ProgramError,
    "module-left-dims": ProgramError,
    "structure-varies": ProgramError,
    "fixed-noise": ProgramError,
    "mask-mismatch": ProgramError,
    "scale-mismatch": ProgramError,
    "enumeration-not-happening": ProgramError,
    "estimator-unsupported": EstimatorError,
    "estimator-key": EstimatorError,
    "objective": UsageError,
    "no-parameters": ProgramError,
    "no-gradient": ProgramError,
    "detached-latent": ProgramError,
    "untrained-module": ProgramError,
    "parameter-collision": ProgramError,
    "devices-differ": ProgramError,
    "data-nan": DataError,
    "data-inf": DataError,
    "data-dtype": DataError,
    "data-support": DataError,
    "nan-behind-mask": DataError,
    "data-empty": DataError,
    "data-lengths": DataError,
    "check-failed": UsageError,
    "non-finite-loss": NonFiniteError,
    "non-finite-gradient": NonFiniteError,
}

_WIDTH = 80
_NAMED = 3


@final
@dataclass(frozen=True)
class Finding:
    """One mistake, or something worth knowing.

    Args:
        severity: an ``error`` stops training or spoils it, a ``warning`` most likely does, a
            ``note`` does not.
        code: what kind of mistake, stable from version to version.
        site: the sample site, where there is one.
        where: the place in words: site, program, plates.
        found: what was found there.
        expected: what was expected.
        advice: what to do.
        error: what was raised, where that is how the mistake showed.

    >>> print(Finding("error", "missing-in-guide", "z", "site 'z' of the model",
    ...       "the guide does not sample it", "a guide site for every latent", "add it"))
    site 'z' of the model: the guide does not sample it; expected a guide site for every latent;
    add it
    """

    severity: Severity
    code: str
    site: str | None
    where: str
    found: str
    expected: str
    advice: str
    error: Exception | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, str | None]:
        """Plain data: all but the error."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "error"}

    def __str__(self) -> str:
        """One sentence: where, found, expected, what to do."""
        return f"{self.where}: {self.found}; expected {self.expected}; {self.advice}"


@final
@dataclass(frozen=True)
class Report:
    """Everything that a check found, errors first."""

    findings: list[Finding]
    sites: int = 0
    parameters: int = 0

    @classmethod
    def of(cls, findings: Iterable[Finding], sites: int, parameters: int) -> Report:
        """Sorted by severity, each thing said once, sites that differ by a number together."""
        unique = {(f.severity, f.code, f.where, f.found): f for f in findings}
        together = _together(list(unique.values()))
        return cls(sorted(together, key=lambda f: SEVERITIES.index(f.severity)), sites, parameters)

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop or spoil training."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that most likely spoil training."""
        return [f for f in self.findings if f.severity == "warning"]

    @property
    def notes(self) -> list[Finding]:
        """What is worth knowing, and no mistake."""
        return [f for f in self.findings if f.severity == "note"]

    @property
    def ok(self) -> bool:
        """No error and no warning."""
        return not (self.errors or self.warnings)

    def raise_errors(self) -> None:
        """Raise if there are errors: one sentence for each.

        Raises:
            AmortizedError: of the class that belongs to the first error's code; its cause is what
                the programs raised, if they did.
        """
        if self.errors:
            cause = next((f.error for f in self.errors if f.error is not None), None)
            raise CODES[self.errors[0].code]("\n".join(map(str, self.errors))) from cause

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "ok": self.ok,
            "sites": self.sites,
            "parameters": self.parameters,
            "findings": [f.to_dict() for f in self.findings],
        }

    def __str__(self) -> str:
        """A page of at most 80 columns."""
        checked = f"{_count(self.sites, 'site')}, {_count(self.parameters, 'parameter')} checked"
        if not self.findings:
            return f"no findings: {checked}"
        counts = [
            _count(number, severity)
            for severity in SEVERITIES
            if (number := sum(f.severity == severity for f in self.findings))
        ]
        return "\n\n".join([f"{', '.join(counts)}: {checked}", *map(_paragraph, self.findings)])


def _paragraph(finding: Finding) -> str:
    lines = [f"{finding.severity.upper()} {finding.code}"]
    parts = {
        "where": finding.where,
        "found": finding.found,
        "expected": finding.expected,
        "to do": finding.advice,
    }
    for head, text in parts.items():
        lead = f"  {head:<8}  "
        lines += textwrap.wrap(
            " ".join(text.split()),
            _WIDTH,
            initial_indent=lead,
            subsequent_indent=" " * len(lead),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _together(findings: list[Finding]) -> list[Finding]:
    """Findings of one code at sites that differ only by a number (``x_0``, ``x_1``) as one."""
    groups: dict[Any, list[Finding]] = {}
    for f in findings:
        stem = None if f.site is None else re.sub(r"\d+", "#", f.site)
        numbered = stem is not None and stem != f.site
        key = (f.severity, f.code, stem, f.advice if not numbered else "")
        groups.setdefault(key if numbered else id(f), []).append(f)
    merged = []
    for first, *others in groups.values():
        if others:
            names = ", ".join(repr(o.site) for o in others[:_NAMED])
            rest = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            first = replace(first, where=f"{first.where}, and likewise {names}{rest}")
        merged.append(first)
    return merged
