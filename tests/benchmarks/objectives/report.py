"""Tables of signal-to-noise ratios and of their slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.benchmarks.objectives.moments import Ratio, Slope, slope
from tests.benchmarks.objectives.snr import EXPECTED, Found, Settings

FIRST = 16
"""Slopes are fitted from there on, and over all K >= 4 beside."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Markdown; the first columns are texts."""
    rule = "|---" * texts + "|---:" * (len(heads) - texts) + "|"
    return "\n".join(
        ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(r) + " |" for r in rows)]
    )


def ratios(works: Mapping[str, Found], limits: Mapping[str, Mapping[str, float]]) -> str:
    """A row a work and gradient, a column a number of particles."""
    every = sorted({k for f in works.values() for points in f.values() for k, _ in points})
    rows = []
    for title, found in works.items():
        for name, points in found.items():
            known = dict(points)
            cells = [cell(known[k]) if k in known else "" for k in every]
            limit = limits.get(title, {}).get(name)
            last = "" if limit is None else f"{limit * every[-1] ** EXPECTED[name]:.3g}"
            rows.append([title, name, *cells, last])
    heads = ["work", "gradient", *(f"K = {k}" for k in every), f"limit, K = {every[-1]}"]
    return table(heads, rows, 2)


def cell(found: Ratio) -> str:
    """The ratio with its 95 % interval."""
    low, high = found.interval
    return f"{found.value:.3g} [{low:.2g}, {high:.2g}]"


def slopes(works: Mapping[str, Found]) -> str:
    """A row a work and gradient."""
    rows = []
    for title, found in works.items():
        for name, points in found.items():
            fits = [shown(slope(points, first)) for first in (FIRST, 4)]
            rows.append([title, name, *fits, f"{EXPECTED[name]:+.1f}"])
    heads = ["work", "gradient", f"slope, K >= {FIRST}", "slope, K >= 4", "theory"]
    return table(heads, rows, 2)


def shown(found: Slope | None) -> str:
    return "" if found is None else f"{found.value:+.3f} ± {found.half:.3f}"


def about(settings: Settings, weights: Mapping[str, Mapping[str, float]]) -> str:
    """How it was measured."""
    size = max(settings.particles)
    shares = "; ".join(
        f"{title}: {found['ess']:.0%} and {found['narrow']:.0%}" for title, found in weights.items()
    )
    return (
        "Ratios are norms of means over roots of total variances of one draw, without the bias of "
        "the mean's own noise; brackets and ± are 95 %, by the jackknife over 100 blocks of draws. "
        f"Draws: {settings.draws:,} for the plain gradient of the Gaussian model and theta's, "
        f"{settings.draws // 20:,} for the others; {settings.network_draws:,} and "
        f"{settings.network_draws // 4:,} of the network, on {settings.images} images. Effective "
        f"share of {size} draws, and share of the guide's scales below 0.707: {shares}."
    )
