"""Milliseconds of a step with each objective of several weights, ours and Pyro's.

``am.SVI.step`` with compile="off", "graph" and "inductor" against ``pyro.infer.SVI.step``, for the
small variational autoencoder at K = 10 and batch 64: the same programs, first weights and batches.

Pyro's ReweightedWakeSleep has one weight for all data of a batch. At batch size 1 that is the right
one, so it is timed there, where a batch of 64 takes 64 steps; and at batch size 64 too, where it is
a step as large as ours on another objective.

The contestants of a work are in one process, which has one contestant of Pyro's, whose parameters
are global. They take turns in blocks, in random order; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep
from pyro.nn import PyroModule
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import nn

import amortized as am
from amortized.objectives.base import Objective
from tests.benchmarks.estimator_cost import ratio, take_turns
from tests.benchmarks.peers.probabilistic import batches, pair
from tests.benchmarks.peers.works import BY_NAME, LR

ROOT = Path(__file__).parents[3]
SMALL, PARTICLES = BY_NAME["small"], 10
OURS: Mapping[str, Callable[[], Objective]] = {
    "IWAE": lambda: am.IWAE(PARTICLES),
    "RWS, wake-phi": lambda: am.ReweightedWakeSleep(PARTICLES),
    "RWS, sleep-phi": lambda: am.ReweightedWakeSleep(PARTICLES, phi="sleep"),
    "TVO": lambda: am.TVO(PARTICLES),
}
MODES = ("off", "graph", "inductor")
PYRO, SINGLE = "Pyro", "off, batch 1"
TAIL = 100
"""Steps at the end of learning whose losses are compared."""

KEPT = ("rounds", "block", "clock", "learn", "seed")
"""Options that a work's own process needs."""

Step = Callable[[int], float]


@dataclass(frozen=True)
class Work:
    """Our objective at batch 64, and Pyro's loss, if it has one, at its own batch size."""

    objective: str
    pyro: str | None
    rows: int = SMALL.batch

    @property
    def name(self) -> str:
        return self.objective + (", singly" if self.rows == 1 else "")

    @property
    def steps(self) -> int:
        """Of Pyro's for a batch of ours."""
        return SMALL.batch // self.rows

    @property
    def comparable(self) -> bool:
        """Whether both have the same objective."""
        return self.pyro is not None and (self.objective == "IWAE" or self.rows == 1)


WORKS = (
    Work("IWAE", "RenyiELBO(alpha=0)"),
    Work("RWS, wake-phi", "ReweightedWakeSleep"),
    Work("RWS, wake-phi", "ReweightedWakeSleep", rows=1),
    Work("RWS, sleep-phi", "ReweightedWakeSleep(insomnia=0)"),
    Work("RWS, sleep-phi", "ReweightedWakeSleep(insomnia=0)", rows=1),
    Work("TVO", None),
)


class Dreaming(PyroModule):
    """The guide with the argument in which Pyro's sleep phase hands over what was simulated."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x, observations=None):
        self.guide(observations["x"] if observations else x)


def ours(objective: str, mode: Any, rows: int) -> Step:
    data, (model, guide) = batches(SMALL), pair(SMALL)
    svi = am.SVI(model, guide, am.VariationalLoss(OURS[objective]()), lr=LR, compile=mode)
    return lambda i: svi.step(chosen(data, i, rows))


def theirs(work: Work) -> Step:
    """``pyro.infer.SVI.step``; of two losses the sum, as ours, per data point."""
    pyro.enable_validation(False)
    data, (model, guide) = batches(SMALL), pair(SMALL)
    known: dict[str, Any] = {"num_particles": PARTICLES, "vectorize_particles": True}
    known["max_plate_nesting"] = 1
    if work.objective == "IWAE":
        loss: Any = RenyiELBO(alpha=0, **known)
    elif work.objective == "RWS, wake-phi":
        loss = ReweightedWakeSleep(**known)
    else:
        guide = Dreaming(guide)
        loss = ReweightedWakeSleep(insomnia=0.0, num_sleep_particles=1, **known)
    svi: Any = SVI(model, guide, Adam({"lr": LR}), loss)

    def step(i: int) -> float:
        found = svi.step(chosen(data, i, work.rows))
        return (sum(found) if isinstance(found, tuple) else found) / work.rows

    return step


def chosen(data: list[torch.Tensor], i: int, rows: int) -> torch.Tensor:
    """The i-th batch; of fewer rows, those of the first batch in turn."""
    if rows == SMALL.batch:
        return data[i % len(data)]
    first = i % SMALL.batch
    return data[0][first : first + rows]


def measured(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds round by round and last losses, by contestant."""
    made: dict[str, Callable[[], Step]] = {
        mode: lambda mode=mode: ours(work.objective, mode, SMALL.batch) for mode in MODES
    }
    if work.rows != SMALL.batch:
        made[SINGLE] = lambda: ours(work.objective, "off", work.rows)
    if work.pyro is not None:
        made[PYRO] = lambda: theirs(work)
    steps, losses = {}, {}
    for name, make in made.items():
        torch.manual_seed(options.seed)
        steps[name] = make()
        losses[name] = [steps[name](i) for i in range(options.learn)][-TAIL:]
    return {"ms": take_turns(steps, options), "losses": losses}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every work in a process of its own; one that fails is reported, and the others go on."""
    reports: dict[str, Any] = {}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {key: getattr(options, key) for key in KEPT}
    for number, work in enumerate(WORKS):
        command = ["-W", "ignore", "-m", "tests.benchmarks.objectives.seconds"]
        done = subprocess.run(
            [sys.executable, *command, json.dumps({"work": number, **kept})],
            env={**os.environ, **threads},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        report = {"error": " ".join(last)[:400]}
        if not done.returncode:
            report = json.loads(done.stdout.splitlines()[-1])
        reports[work.name] = report
        print(work.name, report.get("error") or row(work, report), flush=True)
    return reports


def row(work: Work, report: Mapping[str, Any]) -> list[str]:
    """Cells: medians, ratios with their intervals, and the losses of both."""
    ms: Mapping[str, Sequence[float]] = report["ms"]
    cells = [f"{np.median(ms[mode]):.2f}" for mode in MODES]
    if work.pyro is None:
        return [work.objective, "none", *cells, *[""] * (2 + len(MODES))]
    batch = [work.steps * taken for taken in ms[PYRO]]
    found = [ratio(batch, ms[mode]) for mode in MODES]
    ratios = [f"{middle:.3g} [{low:.3g}, {high:.3g}]" for middle, low, high in found]
    label = f"`{work.pyro}`" + (", 64 steps of batch 1" if work.rows == 1 else "")
    return [work.objective, label, *cells, f"{np.median(batch):.2f}", *ratios, same(work, report)]


def same(work: Work, report: Mapping[str, Any]) -> str:
    """Where both have the same objective: the last losses, and how far one is from the other."""
    if not work.comparable:
        return "another objective"
    name = SINGLE if work.rows == 1 else MODES[0]
    one, other = (np.array(report["losses"][n]) for n in (name, PYRO))
    return f"{one.mean():.3f}, {other.mean():.3f}; {np.abs(one - other).max():.0e}"


def markdown(reports: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """A table with a row a work."""
    heads = ["objective", "Pyro", *(f"ours, {mode}" for mode in MODES), "Pyro's"]
    heads += [f"Pyro's / {mode}" for mode in MODES] + ["losses, ours and Pyro's"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    for work in WORKS:
        report = reports.get(work.name, {"error": "not measured"})
        cells = [work.name, report["error"]] if "error" in report else row(work, report)
        lines.append("| " + " | ".join(cells) + " |")
    about = (
        f"Milliseconds for a batch of 64 at K = {PARTICLES}, VAE 64-64-8, one thread, "
        f"{'processor' if options['clock'] == 'cpu' else 'wall'} time: medians over "
        f"{options['rounds']} rounds; ratios within a round, with 95 % bootstrap intervals. "
        f"Losses: nats per data point, the means of the last {TAIL} of {options['learn']} steps "
        "from the same weights, batches and state of the generator, and the largest difference "
        "among them; of wake-sleep the sum of both losses at batch size 1."
    )
    return "\n".join(lines) + "\n\n" + about


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    work = WORKS[job.pop("work")]
    print(json.dumps(measured(work, argparse.Namespace(**job))))


if __name__ == "__main__":
    main()
