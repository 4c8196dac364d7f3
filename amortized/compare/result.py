"""What a comparison of gradients found, as data, as a table and as a figure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, final, get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from amortized.breakdown import plain_text, terminal_width
from amortized.compare.moments import Interval
from amortized.errors import UsageError

Format = Literal["text", "markdown", "csv", "json"]
_WIDTH = 140


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
    """The norm of the mean gradient over the standard deviation; infinite without a variance."""
    seconds: float
    """Of one draw, by the programs as they are written."""
    model_evaluations: int | None
    work: float
    """Variance times seconds: the variance that a second buys."""
    work_interval: Interval

    @property
    def verdict(self) -> str:
        """What to think of its mean, in a few words."""
        if self.flagged:
            return "biased, as declared" if self.declared_bias else "BIASED"
        return "declared biased" if self.declared_bias else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@final
@dataclass(frozen=True, eq=False)
class GradientComparison:
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
    """

    rows: list[GradientRow]
    means: dict[str, dict[str, Tensor]]
    references: dict[str, dict[str, Tensor]]
    how: dict[str, str]
    targets: dict[str, str]
    sampling: dict[str, str]
    num_draws: int
    level: float

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
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_frame(self) -> Any:
        """A row a candidate and group, as a ``pandas.DataFrame``.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            # pandas is no dependency
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("to_frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame([row.to_dict() for row in self.rows])

    def table(self, format: Format = "text") -> str:
        """The rows as ``"text"`` for a terminal, ``"markdown"``, ``"csv"`` or ``"json"``.

        Raises:
            UsageError: another format.
        """
        if format == "text":
            return plain_text(self.__rich__(), terminal_width(_WIDTH))
        if format == "markdown":
            lines = [_HEADS, ["---"] * len(_HEADS), *map(_cells, self.rows)]
            return "\n".join(f"| {' | '.join(_escaped(c) for c in line)} |" for line in lines)
        if format == "csv":
            return self._csv()
        if format == "json":
            return json.dumps(_plain(self.to_dict()), indent=2, allow_nan=False)
        raise UsageError(f"table(format={format!r}): expected one of {get_args(Format)}")

    def _csv(self) -> str:
        text = io.StringIO()
        names = [f.name for f in fields(GradientRow)]
        writer = csv.writer(text, lineterminator="\n")
        wide = [n for n in names if n.endswith("_interval")]
        heads = [h for n in names for h in ((f"{n}_low", f"{n}_high") if n in wide else (n,))]
        writer.writerow(heads)
        for row in self.rows:
            values = [getattr(row, name) for name in names]
            writer.writerow([v for x in values for v in (x if isinstance(x, tuple) else (x,))])
        return text.getvalue()

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

    def __rich__(self) -> Table:
        """The table with its layout, for ``rich.print``."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for head in _HEADS:
            left = head in ("candidate", "group", "verdict")
            justify = "left" if left else "right"
            table.add_column(head, justify=justify, overflow="fold", no_wrap=not left)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table

    def __str__(self) -> str:
        """The table, and below it what it was measured against."""
        notes = [f"{self.num_draws} draws of each candidate; 95 % intervals"]
        notes += [f"reference of {target}: {how}" for target, how in self.how.items()]
        declared = {row.candidate: row.declared_bias for row in self.rows if row.declared_bias}
        notes += [f"candidate {name!r} is biased: {why}" for name, why in declared.items()]
        if len(self.how) > 1:
            notes += [f"candidate {n!r} has the bound {t}" for n, t in self.targets.items()]
        return f"{self.table()}\n\n" + "\n".join(notes)


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
    "variance x s",
]


def _cells(row: GradientRow) -> list[str]:
    return [
        row.candidate,
        row.group,
        str(row.size),
        f"{row.norm:.3g}",
        f"{row.bias:.2g}",
        f"{row.z:.1f}",
        f"{row.p_value:.2g}",
        row.verdict,
        f"{row.variance:.3g} {_between(row.variance_interval)}",
        f"{row.snr:.3g}",
        f"{1e3 * row.seconds:.2f}",
        "-" if row.model_evaluations is None else str(row.model_evaluations),
        f"{row.work:.2g}",
    ]


def _between(interval: Interval) -> str:
    return f"[{interval[0]:.2g}, {interval[1]:.2g}]"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _plain(value: Any) -> Any:
    """JSON knows no infinity: None stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
