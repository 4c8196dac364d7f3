"""A chosen mapping of estimators, with the measurements that it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from amortized.compare.pilot.outcome import Row
from amortized.compare.tables import Sheet, Tabled
from amortized.estimators.base import Estimator


@final
@dataclass(frozen=True, eq=False)
class Selection(Tabled, Mapping[str, Estimator]):
    """The estimator of each site, to be passed on as ``VariationalLoss(estimators=...)``.

    Attributes:
        names: of the chosen estimators, by site.
        rows: one a site and candidate, the chosen one first.
        pilot_seconds: what the measurements took.
        about: sentences that a reader of the table must know.
    """

    estimators: dict[str, Estimator]
    names: dict[str, str]
    rows: list[Row]
    pilot_seconds: float
    about: list[str]

    def __getitem__(self, site: str) -> Estimator:
        """The estimator of a site."""
        return self.estimators[site]

    def __iter__(self) -> Iterator[str]:
        """The names of the sites."""
        return iter(self.estimators)

    def __len__(self) -> int:
        """How many sites have one."""
        return len(self.estimators)

    def row(self, site: str, candidate: str) -> Row:
        """What was found of a candidate at a site.

        Raises:
            KeyError: nothing.
        """
        for row in self.rows:
            if (row.site, row.candidate) == (site, candidate):
                return row
        raise KeyError((site, candidate))

    @property
    def reasons(self) -> dict[str, str]:
        """Why each site has its estimator."""
        kept = ("chosen", "kept", "fixed")
        return {row.site: row.why for row in self.rows if row.verdict in kept}

    @property
    def options(self) -> list[str]:
        """The same mapping for the command line: ``site=name`` each."""
        return [f"{site}={self.names[site]}" for site in self.estimators]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the mapping by names, and the rows."""
        return {
            "estimators": dict(self.names),
            "reasons": self.reasons,
            "pilot_seconds": self.pilot_seconds,
            "notes": list(self.about),
            "rows": [asdict(row) for row in self.rows],
        }

    def records(self) -> list[dict[str, Any]]:
        """A dict a site and candidate, with both ends of the interval."""
        found = []
        for row in self.rows:
            record = asdict(row)
            low, high = record.pop("variance_interval") or (None, None)
            found.append({**record, "variance_low": low, "variance_high": high})
        return found

    def sheet(self) -> Sheet:
        """The table for people."""
        return Sheet(_HEADS, [_cells(row) for row in self.rows], _WORDS, keys=2, text=True)

    def notes(self) -> list[str]:
        """The mapping, and what one must know of the measurements."""
        mapping = ", ".join(f"{site!r}: {self.names[site]!r}" for site in self.estimators)
        biased = [row for row in self.rows if row.verdict in ("chosen", "kept") and row.bias]
        measured = any(row.work is not None for row in self.rows)
        return [
            f"chosen: {{{mapping}}}" if mapping else f"nothing to choose: {self._without()}",
            *(f"site {row.site!r}: {row.candidate} is biased: {row.bias}" for row in biased),
            f"the pilot took {self.pilot_seconds:.1f} s",
            *((*_UNITS, *self.about) if measured else ()),
        ]

    def _without(self) -> str:
        """Why no site has a choice."""
        if self.rows:
            return "the program asks for the estimator of each latent site"
        return "the guide has no latent site that is random"


_UNITS = (
    "variance: of one draw, with a 95 % interval; ms: of one step",
    "steps: how many times those of a gradient without noise; work: ms x steps, the least is best",
)
_HEADS = ["site", "candidate", "verdict", "variance [95 %]", "steps", "ms", "work (ms)", "why"]
_WORDS = ("site", "candidate", "verdict", "why")


def _cells(row: Row) -> list[str]:
    label = f"{row.candidate} (biased)" if row.bias else row.candidate
    start = [row.site, label, row.verdict]
    if row.variance is None or row.variance_interval is None:
        alone = "-" if row.seconds is None else f"{1e3 * row.seconds:.3g}"
        return [*start, "-", "-", alone, "-", row.why]
    low, high = row.variance_interval
    return [
        *start,
        f"{row.variance:.3g} [{low:.2g}, {f'{high:.2g}' if math.isfinite(high) else 'unknown'}]",
        f"{row.steps:.3g}",
        f"{1e3 * (row.seconds or 0.0):.3g}",
        f"{1e3 * (row.work or 0.0):.3g}",
        row.why,
    ]
