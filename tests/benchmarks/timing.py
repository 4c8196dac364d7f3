"""Interleaved timing: every round runs each arm in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyro
import torch
from rich.console import Console
from rich.table import Table

# Two-sided 95 % quantiles of Student's t by degrees of freedom, so that scipy is not needed.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass
class Arm:
    """One thing to be timed: ``call`` is timed, ``before`` is not."""

    name: str
    call: Callable[[], object]
    before: Callable[[], object] = lambda: None
    rounds: list[float] = field(default_factory=list)
    """Median milliseconds of each round."""

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


def interleave(arms: Sequence[Arm], rounds: int, budget: float = 0.4) -> None:
    """Times the arms call by call in random order; a round lasts about ``budget`` seconds."""
    for arm in arms:
        arm.rounds.clear()
        for _ in range(5):
            arm.before()
            arm.call()
    once = sum(_time(arm) for arm in arms)
    calls = max(5, min(200, int(budget / once)))
    order, shuffle = list(arms), random.Random(0)
    for _ in range(rounds):
        taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
        gc.collect()
        for _ in range(calls):
            shuffle.shuffle(order)
            for arm in order:
                taken[arm.name].append(_time(arm))
        for arm in arms:
            arm.rounds.append(1e3 * float(np.median(taken[arm.name])))


def _time(arm: Arm) -> float:
    arm.before()
    # One thread, so processor time is wall time without the share of other processes.
    started = time.process_time()
    arm.call()
    return time.process_time() - started


def ratio(ours: Arm, theirs: Arm) -> tuple[float, float, float]:
    """Median over rounds of ours / theirs, and its 95 % interval from order statistics."""
    ratios = np.sort(np.array(ours.rounds) / np.array(theirs.rounds))
    n = len(ratios)
    # Ranks that hold the median with at least 95 %: normal approximation of the binomial.
    low = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    return float(np.median(ratios)), float(ratios[low]), float(ratios[n - 1 - low])


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the half-width of its 95 % t-interval; infinite for one value."""
    sample = np.asarray(values, dtype=float)
    n = len(sample)
    if n < 2:
        return float(sample.mean()), math.inf
    quantile = T_95.get(n - 1, 2.262)
    return float(sample.mean()), float(quantile * sample.std(ddof=1) / math.sqrt(n))


def zero(*modules: torch.nn.Module) -> Callable[[], None]:
    """Forgets the gradients of modules: what is done before a timed call."""
    parameters = [p for module in modules for p in module.parameters()]

    def forget() -> None:
        for parameter in parameters:
            parameter.grad = None

    return forget


def show(table: Table) -> None:
    """Prints a table, wide enough also into a file, and what it was measured with."""
    console = Console(width=124)
    console.print(table)
    console.print(
        f"torch {torch.__version__}, pyro {pyro.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}, {os.cpu_count()} cores"
    )
