"""One training: a program with one mapping under one seed, as plain data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]

import amortized as am
from amortized.fit.arguments import LAST_SEED
from amortized.fit.rng import seeded
from amortized.fit.selecting import Selecting
from tests.benchmarks.selection.programs import PROBLEMS, Problem

AUTO, SCORE, PYRO = "auto", "score_function", "Pyro"
# the plain score function is given so many times the steps
LONGER = 2
CHECKS = 50
_BATCH, _PARTICLES = 100, 20


@dataclass(frozen=True)
class Task:
    """Which training."""

    program: str
    candidate: str
    seed: int
    scale: float

    @property
    def steps(self) -> int:
        """How many, as many checks as all have."""
        problem = PROBLEMS[self.program]
        shorter = problem.longer.get(self.candidate, 2 if self.candidate == PYRO else 1)
        return max(1, int(self.scale * problem.steps) // (shorter * CHECKS)) * CHECKS

    @property
    def name(self) -> dict[str, Any]:
        """What tells its row from others."""
        return {**asdict(self), "steps": self.steps}


@dataclass(frozen=True)
class Pilot:
    """A choice of estimators: after so many steps, in so many processor seconds."""

    step: int
    seconds: float
    said: list[str]


@contextmanager
def watched(pilots: list[Pilot]) -> Iterator[None]:
    """Notes every pilot."""
    choose = Selecting.choose

    def timed(self: Selecting, batch: Any, step: int, kl_weight: float) -> list[str]:
        began = time.process_time()
        said = choose(self, batch, step, kl_weight)
        pilots.append(Pilot(step, time.process_time() - began, said))
        return said

    Selecting.choose = timed
    try:
        yield
    finally:
        Selecting.choose = choose


def prepare() -> None:
    """What torch imports at its first use is no training's time."""
    torch.set_num_threads(1)
    program = PROBLEMS["toy"].program
    am.compare_training(program, {AUTO: AUTO}, max_steps=500, seeds=1, progress=False)


def trained(task: Task) -> dict[str, Any]:
    """The row of one training: its curve, and its pilots."""
    problem = PROBLEMS[task.program]
    if task.candidate == PYRO:
        return {**task.name, "pilots": [], "failure": "", "curve": _by_pyro(problem, task)}
    pilots: list[Pilot] = []
    spec = AUTO if task.candidate == AUTO else {problem.sites: task.candidate}
    with watched(pilots):
        found = am.compare_training(
            problem.program,
            {task.candidate: spec},
            max_steps=task.steps * (LONGER if task.candidate == SCORE else 1),
            seeds=[task.seed],
            check_every=task.steps // CHECKS,
            num_particles=_PARTICLES,
            batch_size=_BATCH,
            lr=problem.lr,
            progress=False,
        )
    (trial,) = found.trials
    curve = {"steps": trial.steps, "seconds": trial.seconds, "elbo": trial.elbo}
    told = [asdict(pilot) for pilot in pilots]
    return {**task.name, "pilots": told, "failure": trial.failure, "curve": curve}


def _by_pyro(problem: Problem, task: Task) -> dict[str, list[float]]:
    """The same steps by Pyro's own `SVI`, whose default is the plain score function.

    It starts from the same parameters, and meets the data in an order of its own.
    """
    pyro.clear_param_store()
    with seeded(task.seed):
        program = problem.program()
    data = program.train
    held_out = data if program.val is None else program.val
    check = Trace_ELBO(num_particles=_PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(program.model, program.guide, Adam({"lr": problem.lr}), Trace_ELBO())
    found: dict[str, list[float]] = {"steps": [], "seconds": [], "elbo": []}

    def look(step: int) -> None:
        with seeded(LAST_SEED - task.seed), torch.no_grad():
            elbo = -check.loss(program.model, program.guide, held_out) / len(held_out)
        for name, value in (("steps", step), ("seconds", spent), ("elbo", elbo)):
            found[name].append(value)

    spent, step = 0.0, 0
    with seeded(task.seed):
        look(0)
        while step < task.steps:
            began = time.process_time()
            for rows in torch.randperm(len(data)).split(_BATCH)[: task.steps - step]:
                svi.step(data[rows])
                step += 1
            spent += time.process_time() - began
            # an epoch is at most 15 steps, so checks are that late
            if step // (task.steps // CHECKS) >= len(found["steps"]):
                look(step)
    return found
