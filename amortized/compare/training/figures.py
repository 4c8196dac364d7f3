"""Figures of trainings; imported when one is drawn, since matplotlib is slow to import."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any, Final

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from amortized.compare.figures import label_of, width_of
from amortized.compare.intervals import Mean
from amortized.compare.training.result import Against, Metric, TrainingComparison

# the palette of Okabe and Ito, which color-blind readers can tell apart, the pale yellow last
_COLOURS: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
# so that lines can be told apart without any colour, too
_STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
# candidates, and inches of their names, for which there is room inside of the axes
_MANY: Final = 6
_LONG: Final = 2.0
_XLABELS: Final = (
    ("steps", "optimizer steps"),
    ("seconds", "processor seconds of training"),
    ("wall", "seconds of training"),
)
_YLABELS: Final = (("elbo", "ELBO"), ("log_evidence", "bound of the log evidence"))


def learning_curves(
    found: TrainingComparison,
    ax: Axes | None = None,
    *,
    against: Against = "steps",
    metric: Metric = "elbo",
) -> Axes:
    """A mean curve a candidate over its seeds, with a 95 % band.

    The axis starts where curves have left their first steep climb.
    """
    labels = [label_of(name) for name in found.candidates]
    # inside of the axes they would cover the curves
    beside = ax is None and (len(labels) > _MANY or width_of(labels) > _LONG)
    if ax is None:
        wide = 5 + (width_of(labels) + 0.6 if beside else 0.0)
        _, ax = plt.subplots(figsize=(wide, 3.5), layout="constrained")
    lines, failures = [], []
    looks = zip(found.candidates, cycle(_COLOURS), cycle(_STYLES), strict=False)
    drawn: list[list[Mean]] = []
    for name, colour, style in looks:
        curve = found.curve(name, metric, against)
        values = [mean.value for mean in curve.means]
        drawn.append([mean for mean in curve.means if math.isfinite(mean.value)])
        (line,) = ax.plot(curve.at, values, color=colour, linestyle=style, label=name, lw=1.6)
        band = [(x, m) for x, m in zip(curve.at, curve.means, strict=True) if m.count > 1]
        band = [(x, m) for x, m in band if math.isfinite(m.high - m.low)]
        xs, lows, highs = [x for x, _ in band], [m.low for _, m in band], [m.high for _, m in band]
        ax.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
        lines.append(line)
        failures.append(any(trial.failure for trial in found.of(name)))
        if failures[-1] and curve.at:
            ax.plot(curve.at[-1:], values[-1:], "x", color=colour, ms=8, mew=2)
            _go_on(ax, found, name, against, metric, colour)
    _cut(ax, [means for means in drawn if means])
    data = "validation " if found.held_out else "training "
    unit = "nats per data point" if all(t.per_datum for t in found.trials) else "nats"
    ax.set_xlabel(dict(_XLABELS)[against])
    ax.set_ylabel(f"{data}{dict(_YLABELS)[metric]}\n({unit})")
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.92")
    ax.set_axisbelow(True)
    _legend(ax, lines, zip(labels, failures, strict=True), beside)
    return ax


def _legend(
    ax: Axes, lines: list[Line2D], labels: Iterable[tuple[str, bool]], beside: bool
) -> None:
    """All candidates, whatever their names begin with."""
    place: dict[str, Any] = {"loc": "best"}
    if beside:
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}
    # matplotlib leaves out labels that begin with an underscore, and reads dollars as formulas
    legend = ax.legend(lines, ["-"] * len(lines), frameon=False, handlelength=3, **place)
    for text, (label, failed) in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(f"{label}{' (x: a trial failed)' if failed else ''}")


def _go_on(
    ax: Axes,
    found: TrainingComparison,
    name: str,
    against: Against,
    metric: Metric,
    colour: str,
) -> None:
    """The trials that went on where the mean ends."""
    start = max(0, len(found.curve(name, metric, against).at) - 1)
    for trial in found.of(name):
        at = list(islice(trial.numbers(against), start, None))
        values = list(islice(trial.numbers(metric), start, None))
        ax.plot(at[: len(values)], values, color=colour, lw=0.7, alpha=0.7)


def _cut(ax: Axes, curves: list[list[Mean]]) -> None:
    """Leave out a first climb that would squeeze all the rest."""
    if not curves:
        return
    # once a fifth of the checks are over
    later = [mean for means in curves for mean in means[len(means) // 5 :]]
    ends = [end for m in later for end in (m.value, m.low, m.high) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    lowest = min(mean.value for means in curves for mean in means)
    if high - low < (high - lowest) / 2:
        room = 0.1 * (high - low)
        ax.set_ylim(low - room, high + room)
