"""What a comparison of gradients found, as data, as a table and as a figure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from torch import Tensor

from amortized.compare.moments import Interval
from amortized.compare.tables import Sheet, Tabled, bytes_text
from amortized.errors import UsageError

# smaller p-values have no digits that one could trust
_LEAST_P = 1e-99


@final
@dataclass(frozen=True)
class GradientRow:
    """One candidate's gradient in one group of parameters; gradients are of the loss, in nats."""

    candidate: str
    group: str
    size: int
    """Elements of the group."""
    norm: float
    """Of the mean gradient."""
    bias: float
    """The distance of the mean from the reference."""
    bias_interval: Interval
    """95 %, at least."""
    z: float
    p_value: float
    """How often an unbiased estimate would be as far away."""
    flagged: bool
    """The p-value is below the level of the comparison, shared out over all its rows."""
    declared_bias: str
    """What its estimators say of themselves; empty: they are unbiased."""
    variance: float
    """The trace of the covariance of one draw."""
    variance_interval: Interval
    """95 %, bootstrap."""
    snr: float
    """The norm of the expected gradient over the standard deviation, without what the noise of
    ``num_draws`` adds to the norm of their mean; infinite without noise."""
    seconds: float
    """Of the processor, for one draw by the programs as they are written."""
    model_evaluations: int | None
    peak_bytes: int
    """Of all tensors that one evaluation and its backward pass hold at a time, at most."""
    work: float
    """Variance times seconds: the variance that a second buys."""
    work_interval: Interval
    worst: str = ""
    """The parameter with the element that is furthest from the reference, in standard errors."""
    undecided: str = ""
    """Why nothing can be said of its bias, in a few words; empty: something can."""

    @property
    def verdict(self) -> str:
        """What to think of its mean, in a few words."""
        if self.undecided:
            return f"{self.undecided}, declared biased" if self.declared_bias else self.undecided
        if self.flagged:
            return "biased, as declared" if self.declared_bias else "BIASED"
        return "declared biased" if self.declared_bias else ""

    @property
    def biased(self) -> bool:
        """Whether it was found to be, or says so."""
        return self.flagged or bool(self.declared_bias)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def unjudged(row: GradientRow) -> GradientRow:
    """A row that has nothing to be compared with."""
    return replace(row, flagged=False, undecided="no reference")


@final
@dataclass(frozen=True, eq=False)
class GradientComparison(Tabled):
    """Gradients of several losses at the same parameters.

    Attributes:
        rows: one a candidate and group.
        means: the mean gradient by candidate, then by parameter.
        references: the reference's mean gradient by bound, then by parameter.
        how: how each reference was found, by bound.
        targets: the bound of each candidate.
        sampling: why a candidate was evaluated draw by draw; empty: many at once.
        num_draws: of each candidate.
        level: how often any row is flagged, at most, when all are unbiased.
        about: what else a reader of the table must know.
    """

    rows: list[GradientRow]
    means: dict[str, dict[str, Tensor]]
    references: dict[str, dict[str, Tensor]]
    how: dict[str, str]
    targets: dict[str, str]
    sampling: dict[str, str]
    num_draws: int
    level: float
    about: list[str] = field(default_factory=list)

    def row(self, candidate: str, group: str) -> GradientRow:
        """The row of a candidate and a group.

        Raises:
            UsageError: there is none.
        """
        for row in self.rows:
            if (row.candidate, row.group) == (candidate, group):
                return row
        known = sorted({row.candidate for row in self.rows}), self.groups
        raise UsageError(
            f"no row of candidate {candidate!r} and group {group!r}: the candidates are {known[0]} "
            f"and the groups {known[1]}"
        )

    @property
    def groups(self) -> list[str]:
        """The names of the groups, in order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the mean gradients."""
        return {
            "num_draws": self.num_draws,
            "level": self.level,
            "references": dict(self.how),
            "targets": dict(self.targets),
            "sampling": dict(self.sampling),
            "notes": list(self.about),
            "rows": [row.to_dict() for row in self.rows],
        }

    def records(self) -> list[dict[str, Any]]:
        """A dict a candidate and group, with both ends of each interval."""
        return [_record(row) for row in self.rows]

    def sheet(self) -> Sheet:
        """The table for people."""
        rows = [_cells(row) for row in self.rows]
        return Sheet(_HEADS, rows, ("candidate", "group", "verdict"), _LEGEND, keys=2)

    def plot(self, ax: Any = None, group: str | None = None) -> Any:
        """Variances of one group with their intervals, on a log axis; the ``ax`` comes back.

        Args:
            ax: where to draw; default a new figure.
            group: default the guide, or the first group.

        Raises:
            UsageError: there is no such group.
        """
        # matplotlib is slow to import
        from amortized.compare.figures import variance_bars

        wanted = group or ("guide" if "guide" in self.groups else self.groups[0])
        rows = [row for row in self.rows if row.group == wanted]
        if not rows:
            raise UsageError(f"plot(group={group!r}): expected one of {self.groups}")
        return variance_bars(rows, ax)

    def notes(self) -> list[str]:
        """What it was measured against, and what candidates say of themselves."""
        notes = [f"{self.num_draws} draws of each candidate; 95 % intervals", *self.about]
        notes += [f"reference of {target}: {how}" for target, how in self.how.items()]
        notes += [
            f"candidate {row.candidate!r}, {row.group}: it is {row.worst!r} that is furthest away"
            for row in self.rows
            if row.flagged and row.size > 1
        ]
        declared = {row.candidate: row.declared_bias for row in self.rows if row.declared_bias}
        notes += [f"candidate {name!r} is biased: {why}" for name, why in declared.items()]
        if len(self.how) > 1:
            notes += [f"candidate {n!r} has the bound {t}" for n, t in self.targets.items()]
        return notes


_HEADS = [
    "candidate",
    "group",
    "size",
    "|mean|",
    "|bias|",
    "z",
    "p",
    "verdict",
    "variance [95 %]",
    "SNR",
    "ms",
    "evals",
    "memory",
    "variance x s",
]

_LEGEND = (
    ("group", "parameters that are measured together: the model's, the guide's, one site's alone"),
    ("size", "numbers in the group"),
    ("|mean|", "norm of the mean gradient of the loss (nats, summed over data)"),
    ("|bias|", "its distance from the reference"),
    (
        "z, p",
        "how rare such a distance is for an unbiased candidate, as standard deviations and as "
        "a probability",
    ),
    (
        "verdict",
        "BIASED: too rare to be chance; declared: the estimator says so itself; no reference: "
        "nothing that is right by construction is there to compare it with; too few draws: what "
        "varies was met too rarely to tell",
    ),
    ("variance", "trace of the covariance of one draw, with a 95 % bootstrap interval"),
    (
        "SNR",
        "norm of the expected gradient over the standard deviation; the noise of |mean| is out",
    ),
    ("ms", "processor milliseconds of one evaluation and backward pass"),
    ("evals", "evaluations of the model a draw and datum"),
    ("memory", "of all tensors that one draw holds at a time, at most"),
    ("variance x s", "variance times seconds: the smallest is the best"),
)


def _cells(row: GradientRow) -> list[str]:
    return [
        row.candidate,
        row.group,
        str(row.size),
        f"{row.norm:.3g}",
        f"{row.bias:.2g}",
        _number(row.z, ".1f"),
        f"<{_LEAST_P:g}" if row.p_value <= _LEAST_P else _number(row.p_value, ".2g"),
        row.verdict,
        _with_interval(row.variance, row.variance_interval),
        _number(row.snr, ".3g"),
        f"{1e3 * row.seconds:.2f}",
        "-" if row.model_evaluations is None else str(row.model_evaluations),
        bytes_text(row.peak_bytes),
        _number(row.work, ".2g"),
    ]


def _number(value: float, digits: str) -> str:
    """A dash for what is unknown."""
    return "-" if math.isnan(value) else f"{value:{digits}}"


def _with_interval(value: float, interval: Interval) -> str:
    """Three digits of each; a power of ten stands behind all of them."""
    if value == 0.0 and interval[1] > 0.0:
        return "unknown"
    power = math.floor(math.log10(value)) if value > 0 and math.isfinite(value) else 0
    power = 0 if -3 <= power < 3 else power
    ends = (interval[0], interval[1] if math.isfinite(interval[1]) else None)
    numbers = ("unknown" if x is None else f"{x / 10.0**power:.3g}" for x in (value, *ends))
    mean, low, high = numbers
    return f"{mean} [{low}, {high}]" + (f" e{power}" if power else "")


def _record(row: GradientRow) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.to_dict().items():
        if isinstance(value, tuple):
            flat[f"{name}_low"], flat[f"{name}_high"] = value
        else:
            flat[name] = value
    return {**flat, "verdict": row.verdict}
