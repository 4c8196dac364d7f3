"""From trainings to the table: seconds to the target, and ratios with intervals."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amortized.compare.tables import Sheet
from tests.benchmarks.selection.programs import PROBLEMS
from tests.benchmarks.selection.trials import AUTO, CHECKS, PYRO, SCORE

# of what the best fixed mapping gains
_GAIN = 0.99
_REPLICATES = 2000
_HEADS = (
    *("program", "seeds", "target", "fixed", "s", "auto (s)", "ratio [95 %]", "pilot (s)"),
    *("share", "with it [95 %]", "score / all", "Pyro / all", "chosen"),
)

_EVERY = ("program", "estimator", "steps", "ms a step", "ELBO at the end", "s to the target")

Rows = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Of one program: by candidate and seed."""


@dataclass(frozen=True)
class Time:
    """Seconds to the target; of the whole run where it was not reached."""

    seconds: float
    reached: bool

    def over(self, other: Time) -> str:
        """The ratio, with what is known of it: no end, or nothing at all."""
        if not other.reached:
            return "-" if not self.reached else f"<{self.seconds / other.seconds:.2f}"
        return f"{'' if self.reached else '>'}{self.seconds / other.seconds:.2f}"

    def __str__(self) -> str:
        return f"{'' if self.reached else '>'}{self.seconds:.2f}"


@dataclass(frozen=True)
class Found:
    """Of one program and some seeds: the target, and times of mean curves to it."""

    target: float
    times: dict[str, Time]
    bare: Time
    """Of the measured mapping without its pilots."""


def best_of(rows: Rows, fixed: Sequence[str], seeds: Sequence[int]) -> str:
    """The fixed mapping with the highest mean ELBO at its end."""
    whole = [name for name in fixed if not any(rows[name][s]["failure"] for s in seeds)]
    return max(
        whole, key=lambda name: math.fsum(rows[name][s]["curve"]["elbo"][CHECKS] for s in seeds)
    )


def found_of(rows: Rows, best: str, seeds: Sequence[int]) -> Found:
    """Times of the mean curves over these seeds."""
    _, values = _mean(rows[best], seeds)
    target = values[0] + _GAIN * (values[CHECKS] - values[0])
    times = {name: _first(*_mean(of, seeds), target) for name, of in rows.items()}
    return Found(target, times, _first(*_mean(rows[AUTO], seeds, bare=True), target))


def cells(program: str, rows: Rows) -> list[str]:
    """The row of one program as text."""
    fixed = PROBLEMS[program].fixed
    seeds = sorted(set.intersection(*(set(of) for of in rows.values())))
    best = best_of(rows, fixed, seeds)
    found = found_of(rows, best, seeds)
    fastest = min(fixed, key=lambda name: _order(found.times[name]))
    generator = random.Random(0)
    again = [
        found_of(rows, best, generator.choices(seeds, k=len(seeds))) for _ in range(_REPLICATES)
    ]
    auto, pilot = found.times[AUTO], found.times[AUTO].seconds - found.bare.seconds
    fixed_time = found.times[fastest]
    bare = _interval([(f.bare, f.times[fastest]) for f in again])
    all_in = _interval([(f.times[AUTO], f.times[fastest]) for f in again])
    runs = [rows[AUTO][seed] for seed in seeds]
    whole = math.fsum(run["curve"]["seconds"][-1] for run in runs)
    share = math.fsum(p["seconds"] for run in runs for p in run["pilots"]) / whole
    return [
        program,
        str(len(seeds)),
        f"{found.target:.2f}",
        fastest,
        str(fixed_time),
        str(found.bare),
        f"{found.bare.over(fixed_time)} {bare}",
        f"{pilot:.2f}",
        f"{share:.0%}",
        f"{auto.over(fixed_time)} {all_in}",
        found.times[SCORE].over(auto),
        found.times[PYRO].over(auto) if PYRO in found.times else "-",
        _chosen(runs),
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: programs of which every candidate has a seed in common."""
    lines = [cells(program, of) for program, of in _whole(rows).items()]
    return Sheet(_HEADS, lines, ("program", "fixed", "chosen")).markdown()


def every(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: a line for each candidate of each program."""
    lines = [line for program, of in _whole(rows).items() for line in _candidates(program, of)]
    return Sheet(_EVERY, lines, ("program", "estimator")).markdown()


def _candidates(program: str, rows: Rows) -> list[list[str]]:
    """Means over seeds, the lowest and highest in brackets; the first to the target comes first."""
    fixed = PROBLEMS[program].fixed
    seeds = sorted(set.intersection(*(set(of) for of in rows.values())))
    times = found_of(rows, best_of(rows, fixed, seeds), seeds).times
    lines = []
    for name in sorted(rows, key=lambda name: _order(times[name])):
        runs = [rows[name][seed] for seed in seeds]
        failed = sum(1 for run in runs if run["failure"])
        curves = [run["curve"] for run in runs]
        took = math.fsum(curve["seconds"][-1] / curve["steps"][-1] for curve in curves) / len(seeds)
        last = [curve["elbo"][-1] for curve in curves]
        middle = f"{math.fsum(last) / len(last):.2f} [{min(last):.2f}, {max(last):.2f}]"
        end = f"{failed} of {len(runs)} failed" if failed else middle
        steps = f"{curves[0]['steps'][-1]:,}"
        lines.append([program, name, steps, f"{1e3 * took:.2f}", end, str(times[name])])
    return lines


def _whole(rows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """By program, candidate and seed."""
    by_program: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for row in rows:
        of = by_program.setdefault(row["program"], {})
        of.setdefault(row["candidate"], {})[row["seed"]] = row
    return {
        program: of
        for program, of in by_program.items()
        if {AUTO, *PROBLEMS[program].fixed} <= set(of)
        and set.intersection(*(set(seeds) for seeds in of.values()))
    }


def _mean(
    of: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], *, bare: bool = False
) -> tuple[list[float], list[float]]:
    """Mean seconds and mean ELBO at each check, as far as all trainings went."""
    seconds = [_without_pilots(of[s]) if bare else of[s]["curve"]["seconds"] for s in seeds]
    values = [of[s]["curve"]["elbo"] for s in seeds]
    columns = (zip(*lists, strict=False) for lists in (seconds, values))
    at, mean = ([math.fsum(column) / len(column) for column in part] for part in columns)
    return at, mean


def _without_pilots(row: Mapping[str, Any]) -> list[float]:
    curve = row["curve"]
    return [
        seconds - math.fsum(p["seconds"] for p in row["pilots"] if p["step"] < step)
        for step, seconds in zip(curve["steps"], curve["seconds"], strict=True)
    ]


def _first(at: Sequence[float], values: Sequence[float], target: float) -> Time:
    """Where a curve first reaches the target, between checks by a straight line."""
    for index, value in enumerate(values):
        if value >= target:
            if not index:
                return Time(at[0], True)
            low = values[index - 1]
            share = (target - low) / (value - low) if math.isfinite(low) else 1.0
            return Time(at[index - 1] + share * (at[index] - at[index - 1]), True)
    return Time(at[-1], False)


def _order(time: Time) -> tuple[bool, float]:
    return not time.reached, time.seconds


def _interval(pairs: Sequence[tuple[Time, Time]]) -> str:
    """The percentiles of ratios; what does not reach the target is infinitely late."""
    ratios = sorted(
        own.seconds / other.seconds if own.reached else math.inf
        for own, other in pairs
        if other.reached
    )
    if not ratios:
        return "[-]"
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.025, 0.975))
    return f"[{low:.2f}, {high:.2f}]"


def _chosen(runs: Sequence[Mapping[str, Any]]) -> str:
    """What each training ended with, and how often."""
    counts: Counter[str] = Counter()
    for run in runs:
        sites: dict[str, str] = {}
        for pilot in run["pilots"]:
            for sentence in pilot["said"]:
                if "->" in sentence:
                    _, site, change, *_ = sentence.split(": ")
                    sites[site.removeprefix("site ")] = change.split(" -> ")[1]
        names = set(sites.values())
        text = ", ".join(f"{site} {name}" for site, name in sites.items())
        counts[text if len(names) > 1 else next(iter(names), "the default")] += 1
    return "; ".join(f"{text} ({count})" for text, count in counts.most_common())
