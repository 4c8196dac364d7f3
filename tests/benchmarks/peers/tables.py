"""The tables: contestants of a work, the ratios to reach, and whether all did the same work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from tests.benchmarks.peers.turns import Result
from tests.benchmarks.peers.works import SECONDS_A_SITE, TARGETS, Target, Work, comparable
from tests.benchmarks.timing import ratio

Results = dict[str, Result]
TAIL = 100
"""Steps at the end of learning whose losses are compared."""


def contestants(work: Work, results: Results) -> Table:
    """One row a contestant."""
    title = f"{work.name}: {work.title}; ms a step, loss per datum after {work.learn} steps"
    table = Table(title=title, title_justify="left")
    table.add_column("contestant")
    for column in ("median", "quartiles", "threads", "start s", "peak MB", "loss", "same work"):
        table.add_column(column, justify="right")
    for result in results.values():
        tail = result.losses[-TAIL:]
        table.add_row(
            result.name,
            f"{result.arm.median:.3f}",
            f"{result.low:.3f} - {result.high:.3f}",
            f"{result.threads:.2f}",
            f"{result.start_s:.2f}",
            f"{result.peak_mb:.0f}",
            f"{np.mean(tail):.2f}" if tail and comparable(work, result.name) else "",
            agreement(work, result, results),
        )
    return table


def agreement(work: Work, result: Result, results: Results) -> str:
    """Whether the last losses equal the first contestant's, step by step, up to noise.

    Both saw the same batches and began with the same weights, so the noise of their draws is all
    that differs. What it has done to the weights by then differs by about 0.7 % from seed to seed
    (over 40 seeds the small VAE ends at 32.945 +- .036 by NumPyro and 32.946 +- .035 by hand).
    """
    first = next(iter(results.values()))
    if not comparable(work, result.name) or not result.losses:
        return ""
    theirs, ours = (np.array(r.losses[-TAIL:]) for r in (first, result))
    difference = ours - theirs
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    allowed = max(5 * error, 0.03 * abs(theirs.mean()))
    return "yes" if abs(difference.mean()) <= allowed else f"NO: {difference.mean():+.2f}"


def fastest(names: Sequence[str], results: Results) -> Result | None:
    """The one with the smallest median among those that took part."""
    present = [results[name] for name in names if name in results]
    return min(present, key=lambda result: result.arm.median, default=None)


def targets(work: Work, results: Results) -> Iterator[tuple[str, ...]]:
    """Rows of the table of ratios."""
    for target in TARGETS:
        ours, theirs = fastest(target.ours, results), fastest(target.theirs, results)
        if target.work == work.name and ours is not None and theirs is not None:
            # of several the fastest is named
            chosen = f" ({theirs.name})" if len(target.theirs) > 1 else ""
            about = (work.name, ours.name, target.against + chosen)
            yield *about, *judged(target, ours, theirs)
    captured = results.get("amortized graph")
    if work.kind == "chain" and captured is not None:
        seconds = captured.start_s / work.sites
        reached = "yes" if seconds <= SECONDS_A_SITE else "NOT YET"
        measured = f"{seconds:.3f} s"
        about = (work.name, captured.name, "seconds to start, a latent site")
        yield *about, f"<= {SECONDS_A_SITE} s", measured, reached


def judged(target: Target, ours: Result, theirs: Result) -> tuple[str, str, str]:
    """What is asked for, what was measured with its 95 % interval, and whether that is enough."""
    if target.faster is not None:
        middle, low, high = ratio(theirs.arm, ours.arm)
        reached, asked = middle >= target.faster, f">= {target.faster:g}x faster"
    else:
        middle, low, high = ratio(ours.arm, theirs.arm)
        reached, asked = middle <= target.at_most, f"<= {target.at_most:g}x its time"
    measured = f"{middle:.2f}x [{low:.2f}, {high:.2f}]"
    return asked, measured, "yes" if reached else "NOT YET"


def ratios(rows: Sequence[tuple[str, ...]]) -> Table:
    """All that were asked for."""
    table = Table(title="ratios, the median over rounds [95 %]", title_justify="left")
    for column in ("work", "ours", "against", "to reach", "measured", "reached"):
        table.add_column(column, justify="left" if column in ("work", "ours") else "right")
    for row in rows:
        table.add_row(*row)
    return table
