"""What a pilot found: a row for every candidate at every site."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from amortized.compare.moments import Interval
from amortized.compare.pilot.options import Option, SiteOptions
from amortized.estimators.base import Estimator

Verdict = Literal["chosen", "kept", "worse", "tied", "refused", "failed", "not measured", "fixed"]


@final
@dataclass(frozen=True)
class Row:
    """A candidate at a site, with the other sites as they were when it was measured."""

    site: str
    candidate: str
    verdict: Verdict
    why: str
    bias: str = ""
    variance: float | None = None
    """Of one draw of the gradient, the trace of its covariance, model and guide together."""
    variance_interval: Interval | None = None
    seconds: float | None = None
    """Of one step as training would take it."""
    steps: float | None = None
    """How many times the steps of a gradient without noise: the root of one plus variance over the
    squared norm of the mean gradient, averaged over groups."""
    work: float | None = None
    """Seconds times that."""
    draws: int = 0


@final
@dataclass(eq=False)
class Outcome:
    """What a pilot found.

    Attributes:
        options: what each site could have.
        chosen: by site.
        before: the names of what sites had when it began.
        rows: one a site and candidate.
        seconds: that the pilot took.
        learned: the estimators of the chosen mapping with what they learned, by site.
        notes: what a reader must know.
    """

    options: dict[str, SiteOptions]
    chosen: dict[str, Option]
    before: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    learned: dict[str, Estimator] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
