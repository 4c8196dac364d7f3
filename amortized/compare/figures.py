"""Figures of comparisons; imported when one is drawn, since matplotlib is slow to import."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from amortized.compare.result import GradientRow

# of the palette of Okabe and Ito, which color-blind readers can tell apart; hatched besides
_UNBIASED, _BIASED = "#0072B2", "#E69F00"


def variance_bars(rows: Sequence[GradientRow], ax: Axes | None = None) -> Axes:
    """A bar a candidate with its 95 % interval, on a log axis; the best one at the bottom.

    A candidate without variance has no bar, but a word. Biased ones are hatched.
    """
    if ax is None:
        size = (6, 0.4 * len(rows) + 1.2)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ordered = sorted(rows, key=lambda row: row.variance)
    shown = [row for row in ordered if row.variance > 0]
    lowest = min((r.variance_interval[0] or r.variance for r in shown), default=1.0)
    left = lowest / 3
    for place, row in enumerate(ordered):
        if row.variance == 0:
            ax.text(left * 1.1, place, "no variance", va="center", fontsize="small", color="0.3")
            continue
        biased = bool(row.verdict)
        low, high = row.variance_interval
        high = min(high, 1e3 * row.variance)
        ax.barh(
            place,
            row.variance - left,
            left=left,
            height=0.6,
            color=_BIASED if biased else _UNBIASED,
            hatch="///" if biased else None,
            edgecolor="white",
            xerr=[[row.variance - low], [high - row.variance]],
            error_kw={"ecolor": "0.2", "capsize": 3, "elinewidth": 1},
        )
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    highest = max((min(r.variance_interval[1], 1e3 * r.variance) for r in shown), default=10.0)
    ax.set_xlim(left, highest * 1.5)
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    ax.set_yticks(range(len(ordered)), [row.candidate for row in ordered])
    ax.set_xlabel(f"variance of the gradient, {rows[0].group} (nats²)")
    if any(row.verdict for row in shown):
        marks = [Patch(facecolor=_UNBIASED), Patch(facecolor=_BIASED, hatch="///", edgecolor="w")]
        ax.legend(marks, ["unbiased", "biased"], frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, axis="x", color="0.92")
    ax.set_axisbelow(True)
    return ax
