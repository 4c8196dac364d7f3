"""The ELBO of training images against steps and against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

# Okabe and Ito's, which all kinds of colour vision tell apart; without the yellow, which is too
# pale for a line. Dashes tell apart what has the same colour, and help in print.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
EARLY = 0.08
"""Where the axis of the ELBO begins: what all had reached after this part of the time."""


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """One line a run, one colour, dash and mark an estimator."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKS), strict=False)
    for (name, several), (colour, dash, mark) in zip(runs.items(), styles, strict=False):
        label: str | None = name
        for run in several:
            curve = run.get("curve", [])
            if not curve:
                continue
            elbo = [point["elbo"] for point in curve]
            look: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": mark}
            look |= {"markersize": 5, "linewidth": 1.5, "alpha": 0.9}
            look |= {"markevery": max(1, len(curve) // 6)}
            left.plot([p["step"] for p in curve], elbo, label=label, **look)
            right.plot([p["seconds"] for p in curve], elbo, **look)
            label = None
    left.set_xlabel("steps")
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.set_xlabel("seconds of training (processor time)")
    left.set_ylabel("ELBO of training images (nats)")
    cut(left, runs)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    if left.lines:
        figure.legend(loc="outside right center", frameon=False, handlelength=3.2)
    figure.savefig(path, dpi=160)
    return path


def cut(ax: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Leaves out the first steep climb, and what never left it."""
    curves = [run["curve"] for several in runs.values() for run in several if run.get("curve")]
    if not curves:
        return
    top = max(point["elbo"] for curve in curves for point in curve)
    early = [
        next(p["elbo"] for p in curve if p["seconds"] >= EARLY * curve[-1]["seconds"])
        for curve in curves
    ]
    bottom = min(float(np.median(early)), *(curve[-1]["elbo"] for curve in curves[:1]))
    span = max(top - bottom, 1e-3)
    ax.set_ylim(bottom - 0.05 * span, top + 0.05 * span)
