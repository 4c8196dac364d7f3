"""The signal-to-noise ratio of gradients against the number of particles, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from tests.benchmarks.objectives.snr import DREG, EXPECTED, MODEL, PLAIN, WAKE, Found

# Okabe and Ito's colours, which all kinds of colour vision tell apart; marks and dashes besides.
STYLES: Mapping[str, tuple[str, str, Any]] = {
    MODEL: ("#000000", "s", (0, (1.5, 1.2))),
    DREG: ("#0072B2", "o", "-"),
    WAKE: ("#009E73", "^", (0, (6, 1.5, 1.5, 1.5))),
    PLAIN: ("#D55E00", "D", (0, (5, 1.5))),
}
NAMES: Mapping[str, str] = {
    MODEL: r"$\theta$, IWAE",
    DREG: r"$\phi$, IWAE, DReG",
    WAKE: r"$\phi$, wake-$\phi$",
    PLAIN: r"$\phi$, IWAE, pathwise",
}
FADED = "#888888"


def draw(works: Mapping[str, Found], limits: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """One panel a work; thin grey lines are the limits where they are known."""
    figure = Figure(figsize=(7.0, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(works), squeeze=False)[0]
    for ax, (title, found) in zip(panels, works.items(), strict=True):
        panel(ax, found, limits.get(title, {}))
        ax.set_title(title, fontsize=9)
    panels[0].set_ylabel("signal-to-noise ratio", fontsize=9)
    handles = {line.get_label(): line for ax in panels for line in ax.lines}
    wanted = [name for name in (*NAMES.values(), "limit") if name in handles]
    figure.legend(
        [handles[name] for name in wanted],
        wanted,
        loc="outside lower center",
        ncols=len(wanted),
        frameon=False,
        fontsize=8.5,
        handlelength=2.8,
        columnspacing=1.2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def panel(ax: Axes, found: Found, limits: Mapping[str, float]) -> None:
    """Lines with 95 % bands; a ratio that cannot be told from zero has its upper end alone."""
    every = sorted({k for points in found.values() for k, _ in points})
    for name, (colour, mark, dash) in STYLES.items():
        points = [(k, r) for k, r in found.get(name, []) if r.square > 0]
        if not points:
            continue
        ks, values = [k for k, _ in points], [r.value for _, r in points]
        low = [max(r.interval[0], 0.3 * r.value) for _, r in points]
        high = [r.interval[1] for _, r in points]
        if name in limits:
            x = np.array([max(4, every[0]), every[-1]], dtype=float)
            line = limits[name] * x ** EXPECTED[name]
            ax.plot(x, line, color=FADED, linewidth=0.9, zorder=1, label="limit")
        ax.fill_between(ks, low, high, color=colour, alpha=0.22, linewidth=0)
        look: dict[str, Any] = {"color": colour, "marker": mark, "linestyle": dash}
        if name == MODEL:  # it may lie on another: larger and hollow, it is seen there
            look |= {"markerfacecolor": "none", "markersize": 8}
        ax.plot(ks, values, **{"markersize": 4.5, "linewidth": 1.4, **look}, label=NAMES[name])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(every))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xticklabels([str(k) for k in every])
    ax.set_xlabel("particles $K$", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
