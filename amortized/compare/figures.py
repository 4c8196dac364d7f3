"""Figures of comparisons; imported when one is drawn, since matplotlib is slow to import."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Final

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from amortized.compare.result import GradientRow

# of the palette of Okabe and Ito, which color-blind readers can tell apart; hollow besides
_UNBIASED, _BIASED = "#0072B2", "#E69F00"
# of a name in a figure: characters of a line, and of its beginning and end where it is longer
_LINE: Final = 30
_HEAD, _TAIL = 38, 16
# of a character, of a line of text, in inches
_WIDE: Final = 0.085
_HIGH: Final = 0.17
# an interval that reaches further says that nothing is known
_REACH: Final = 1e3


def label_of(name: str) -> str:
    r"""A name as a figure has room for it: on two lines, the middle of a long one left out.

    >>> label_of("a name of a candidate that has more words than there is room for in any figure")
    'a name of a candidate that has\nmore wo … or in any figure'
    """
    text = " ".join(name.split())
    if len(text) > _HEAD + _TAIL + 3:
        text = f"{text[:_HEAD].rstrip()} … {text[-_TAIL:].lstrip()}"
    return "\n".join(textwrap.wrap(text, _LINE)) or '""'


def width_of(labels: Sequence[str]) -> float:
    """What the longest line takes, in inches."""
    return _WIDE * max((len(line) for label in labels for line in label.split("\n")), default=0)


def variance_bars(rows: Sequence[GradientRow], ax: Axes | None = None) -> Axes:
    """A point a candidate with its 95 % interval, on a log axis; the best one at the bottom.

    A candidate without variance has no point, but a word. Biased ones are hollow squares.
    """
    ordered = sorted(rows, key=lambda row: row.variance)
    labels = [label_of(row.candidate) for row in ordered]
    if ax is None:
        lines = sum(label.count("\n") + 1 for label in labels)
        size = (4.2 + width_of(labels), 0.25 * len(rows) + _HIGH * lines + 1.0)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.set_xscale("log")
    for place, row in enumerate(ordered):
        if row.variance > 0:
            _point(ax, place, row)
        else:
            across = ax.get_yaxis_transform()
            look: dict[str, Any] = {"va": "center", "fontsize": "small", "color": "0.3"}
            words = "no variance" if row.variance_interval[1] == 0 else "too few draws"
            ax.text(0.02, place, words, transform=across, **look)
    shown = [row for row in ordered if row.variance > 0]
    if not shown:
        ax.set_xticks([])
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.margins(x=0.08)
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    # a dollar in a name begins no formula
    ax.set_yticks(range(len(ordered)), labels, parse_math=False)
    words = f"variance of the gradient, {' '.join(rows[0].group.split())} (nats²)"
    ax.set_xlabel("\n".join(textwrap.wrap(words, 2 * _LINE)), parse_math=False)
    if any(row.biased for row in shown):
        marks = [Line2D([], [], linestyle="", **_look(biased)) for biased in (False, True)]
        ax.legend(marks, ["unbiased", "biased"], frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="x", color="0.92")
    ax.set_axisbelow(True)
    return ax


def _point(ax: Axes, place: int, row: GradientRow) -> None:
    low, high = row.variance_interval
    low, high = max(low, row.variance / _REACH), min(high, row.variance * _REACH)
    # a bootstrap interval need not hold the value itself
    reach = [[max(0.0, row.variance - low)], [max(0.0, high - row.variance)]]
    bars: dict[str, Any] = {"ecolor": "0.2", "capsize": 3, "elinewidth": 1}
    ax.errorbar([row.variance], [place], xerr=reach, linestyle="", **bars, **_look(row.biased))


def _look(biased: bool) -> dict[str, Any]:
    """Of a point."""
    colour = _BIASED if biased else _UNBIASED
    inside = "white" if biased else colour
    shape = {"marker": "s" if biased else "o", "markersize": 7.0, "markeredgewidth": 1.5}
    return {**shape, "color": colour, "markerfacecolor": inside}
