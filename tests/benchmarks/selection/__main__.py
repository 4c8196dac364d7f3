"""Seconds to a target ELBO: estimators chosen by measuring, against every fixed mapping.

    python -m tests.benchmarks.selection --jobs 2                     # all, one seed: half an hour
    python -m tests.benchmarks.selection --only toy chain --seeds 3 --json selection.json

Each program is trained until the validation ELBO hardly rises any more (3,000 to 24,000 steps),
with "auto" and with each fixed mapping, from the same parameters and in the same order of the data,
by `am.compare_training`: every training is a task for one of --jobs processes with one thread.
Mappings whose steps take several times as long have so many times fewer steps, so that all have
about as many seconds: `Problem.longer`.

The target is 99 % of what the best fixed mapping gains in validation ELBO to its end (checks have
noise of their own). Seconds are those of a processor, from the first step to where the mean curve
over seeds reaches the target, between checks by a straight line; captures count, checks do not. The
pilot of "auto" is told apart, and counts in "with it" and in the two columns after. "fixed" is the
fastest of all fixed mappings in hindsight, which favours it. Intervals are percentiles over seeds
drawn again, the same ones for both. What does not reach the target has ">" and its whole run.

To reach: at most 1.3 times the seconds of the fastest fixed mapping, the pilot at most 10 % of the
run, and at least 1.5 times sooner than the plain score function, which is Pyro's own default: once
in our harness with twice the steps, and once by Pyro's own SVI, whose steps take longer, with half.

Finished trainings are kept in --json, a line each, and are not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tests.benchmarks.selection.programs import PROBLEMS
from tests.benchmarks.selection.table import every, table
from tests.benchmarks.selection.trials import AUTO, PYRO, Task, prepare, trained


def tasks(names: Sequence[str], seeds: int, scale: float) -> list[Task]:
    """All trainings: the longest first, then seed by seed."""
    found = [
        Task(name, candidate, seed, scale)
        for seed in range(seeds)
        for name in names
        for candidate in (AUTO, *PROBLEMS[name].fixed, PYRO)
    ]
    return sorted(found, key=lambda task: -PROBLEMS[task.program].longer.get(task.candidate, 1))


def finished(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was interrupted is removed."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def run(left: list[Task], jobs: int, seconds: float, kept: Any) -> list[dict[str, Any]]:
    """So many at a time; none is begun after so many seconds."""
    began, rows, total = time.monotonic(), [], len(left)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare) as pool:
        running: set[Future[dict[str, Any]]] = set()
        while running or left:
            if time.monotonic() - began > seconds:
                left.clear()
            while left and len(running) < jobs:
                running.add(pool.submit(trained, left.pop(0)))
            done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                if (error := future.exception()) is not None:
                    print(f"left out: {type(error).__name__}: {error}", flush=True)
                    continue
                row = future.result()
                rows.append(row)
                kept(row)
                took, last = row["curve"]["seconds"][-1], row["curve"]["elbo"][-1]
                where = f"{len(rows)}/{total} {time.monotonic() - began:.0f} s"
                who = f"{row['program']}, {row['candidate']}, seed {row['seed']}"
                print(f"{where}: {who}: {took:.1f} s, {last:.3f}", flush=True)
    return rows


def main() -> None:
    """Runs what is asked for and not there yet; the table comes last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--minutes", type=float, default=1e6, help="none is begun later")
    parser.add_argument("--json", type=Path, help="a file of finished trainings")
    asked = parser.parse_args()
    wanted = tasks(asked.only, asked.seeds, asked.scale)
    names = [task.name for task in wanted]
    kept_rows = [] if asked.json is None else finished(asked.json)
    rows = [row for row in kept_rows if {k: row.get(k) for k in names[0]} in names]
    there = [{k: row[k] for k in names[0]} for row in rows]

    def kept(row: dict[str, Any]) -> None:
        if asked.json is not None:
            with asked.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    left = [task for task in wanted if task.name not in there]
    rows += run(left, asked.jobs, 60 * asked.minutes, kept)
    order = list(PROBLEMS)
    rows.sort(key=lambda row: order.index(row["program"]))
    print(table(rows), every(rows), sep="\n\n")


if __name__ == "__main__":
    main()
