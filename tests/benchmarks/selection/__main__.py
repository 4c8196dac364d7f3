"""Seconds to a target ELBO: estimators chosen by measuring, against every fixed mapping.

    python -m tests.benchmarks.selection                        # all, about ten minutes
    python -m tests.benchmarks.selection --only toy chain --seeds 3 --json selection.json

Each program is trained with ``estimators="auto"`` and with each fixed mapping, from the same
parameters and in the same order of the data, by `am.compare_training`. The target is 99 % of what
the best fixed mapping gains in validation ELBO to its end (checks have noise of their own); seconds
are those of one processor, from the first step to the target, between checks by a straight line.
"auto" counts with its pilot; what the pilot took is told apart, as a share of the whole run.

To reach: at most 1.3 times the seconds of the fastest fixed mapping, the pilot at most 10 % of the
run, and at least 1.5 times sooner than the plain score function, which is Pyro's own default (here
in our harness, which is faster than Pyro's: the ratio to Pyro itself is larger), which is given
three times the steps. What does not reach the target counts with its whole run, as ">".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import amortized as am
from amortized.compare.tables import Sheet
from amortized.fit.selecting import Selecting
from tests.benchmarks.selection.programs import PROBLEMS, Problem

# of what the best fixed mapping gains
_GAIN = 0.99
# the plain score function is given so many times the steps
_SCORE, _LONGER = "score_function", 3
_HEADS = ("program", "target", "fixed", "s", "auto (s)", "ratio", "pilot", "score / auto", "chosen")


@contextmanager
def watched(pilots: list[float], said: list[str]) -> Iterator[None]:
    """Notes the processor seconds of every pilot, and what it says."""
    choose = Selecting.choose

    def timed(self: Selecting, *arguments: Any) -> list[str]:
        began = time.process_time()
        found = choose(self, *arguments)
        pilots.append(time.process_time() - began)
        said.extend(found)
        return found

    Selecting.choose = timed
    try:
        yield
    finally:
        Selecting.choose = choose


def seconds_to(found: am.TrainingComparison, name: str, target: float) -> tuple[float, bool]:
    """Mean seconds to the target, and whether every trial reaches it."""
    mean = found.time_to(name, target)
    trials = found.of(name)
    if mean.count == len(trials) > 0:
        return mean.value, True
    return math.fsum(trial.seconds[-1] for trial in trials) / len(trials), False


def trained(
    problem: Problem, candidates: dict[str, Any], steps: int, seeds: int
) -> am.TrainingComparison:
    """Trainings with twenty checks each."""
    return am.compare_training(
        problem.program,
        candidates,
        max_steps=steps,
        seeds=seeds,
        check_every=steps // 20,
        num_particles=20,
        batch_size=100,
        lr=problem.lr,
        progress=False,
    )


def measured(name: str, problem: Problem, seeds: int, scale: float) -> dict[str, Any]:
    """One row of the table."""
    pilots: list[float] = []
    said: list[str] = []
    steps = max(100, int(scale * problem.steps))
    with watched(pilots, said):
        found = trained(problem, problem.candidates(), steps, seeds)
    longer = {_SCORE: {problem.sites: _SCORE}}
    score = trained(problem, longer, _LONGER * steps, seeds)
    best = max(problem.fixed, key=lambda fixed: found.final(fixed).value)
    curve = [mean.value for mean in found.curve(best).means]
    target = curve[0] + _GAIN * (curve[-1] - curve[0])
    times = {candidate: seconds_to(found, candidate, target) for candidate in found.candidates}
    times[_SCORE] = seconds_to(score, _SCORE, target)
    reached = {fixed: times[fixed][0] for fixed in problem.fixed if times[fixed][1]}
    fastest = min(reached or {best: times[best][0]}, key=lambda f: times[f][0])
    total = math.fsum(trial.seconds[-1] for trial in found.of("auto"))
    return {
        "program": name,
        "target": target,
        "steps": steps,
        "seeds": seeds,
        "fastest": fastest,
        "seconds": times,
        "final": {candidate: found.final(candidate).value for candidate in found.candidates},
        "pilot": math.fsum(pilots) / total,
        "said": [sentence for sentence in said if "->" in sentence],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """The row as text."""
    times, fastest = row["seconds"], row["fastest"]
    (auto, reached), (fixed, _) = times["auto"], times[fastest]
    score, scored = times[_SCORE]
    switches = {
        s.split("site ")[1].split(":")[0]: s.split("-> ")[1].split(":")[0] for s in row["said"]
    }
    return [
        row["program"],
        f"{row['target']:.2f}",
        fastest,
        f"{fixed:.2f}",
        f"{'' if reached else '>'}{auto:.2f}",
        f"{auto / fixed:.2f}",
        f"{row['pilot']:.0%}",
        f"{'' if scored else '>'}{score / auto:.1f}",
        ", ".join(f"{site} {name}" for site, name in switches.items()) or "the default",
    ]


def main() -> None:
    """Runs what is asked for; rows are printed as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    # what torch imports at its first use is nobody's time
    am.compare_training(
        PROBLEMS["toy"].program, {"auto": "auto"}, max_steps=500, seeds=1, progress=False
    )
    rows = []
    for name in asked.only:
        rows.append(measured(name, PROBLEMS[name], asked.seeds, asked.scale))
        print(json.dumps(rows[-1]), flush=True)
        if asked.json is not None:
            asked.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(Sheet(_HEADS, [cells(row) for row in rows], ("program", "fixed", "chosen")).markdown())


if __name__ == "__main__":
    main()
