"""What the checks before training cost: ``fit(check=True)`` against ``fit(check=False)``.

    python -m tests.benchmarks.check_overhead [--pairs 9] [--epochs 100]

The VAE of ``examples/vae.py`` on scikit-learn's digits, 100 epochs with validation. Each pair of
runs starts from the same seed, in random order; times are processor time of one thread, of the call
of ``fit`` only, and of its part before the first epoch, where the checks are: their difference as a
share of the whole is the cost, which a busy machine blurs less than the ratio of two whole runs.
The bar is 3 %. Calls of functions are counted too, Python's and C's: an epoch has as many with
checks as without.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from types import FrameType

import numpy as np
import pyro
import torch
from rich.table import Table

import amortized as am
from amortized.fit.callbacks import Callback, FitState
from tests.benchmarks.programs import example
from tests.benchmarks.timing import Arm, ratio, show

BAR = 0.03
BATCH = 128


class Start(Callback):
    """Looks at the clock when the checks are done, and before the first epoch."""

    seconds: float = 0.0

    def on_fit_start(self, state: FitState) -> None:
        self.seconds = time.process_time()


class Run:
    """One training: seconds before the first epoch, seconds in all, and a parameter at the end."""

    def __init__(self, check: bool, epochs: int) -> None:
        pyro.set_rng_seed(0)
        program = example("vae").program()
        loss = am.VariationalLoss(am.ELBO(kl="analytic"))
        svi, start = am.SVI(program.model, program.guide, loss, lr=1e-3), Start()
        began = time.process_time()
        svi.fit(
            program.train,
            program.val,
            max_epochs=epochs,
            batch_size=BATCH,
            seed=0,
            check=check,
            progress=False,
            callbacks=[start],
        )
        self.whole = time.process_time() - began
        self.before = start.seconds - began
        self.end = program.guide.encoder[0].weight.detach()


def paired(pairs: int, epochs: int) -> list[tuple[Run, Run]]:
    """Runs with and without checks; both must end in the same parameters."""
    found, order, shuffle = [], [True, False], random.Random(0)
    for number in range(pairs):
        shuffle.shuffle(order)
        runs = {check: Run(check, epochs) for check in order}
        checked, unchecked = runs[True], runs[False]
        if not torch.equal(checked.end, unchecked.end):
            raise RuntimeError("training with checks ends elsewhere than training without")
        found.append((checked, unchecked))
        print(f"pair {number + 1}: {checked.whole:.2f} s, {unchecked.whole:.2f} s", flush=True)
    return found


def arm(name: str, seconds: list[float]) -> Arm:
    return Arm(name, lambda: None, rounds=[1e3 * value for value in seconds])


def check_alone(times: int) -> float:
    """Milliseconds of ``am.check`` on one batch."""
    program = example("vae").program()
    loss = am.VariationalLoss(am.ELBO(kl="analytic"))
    taken = []
    for _ in range(times):
        began = time.process_time()
        report = am.check(program.model, program.guide, program.train[:BATCH], loss=loss)
        taken.append(1e3 * (time.process_time() - began))
        if not report.ok:
            raise RuntimeError(str(report))
    return float(np.median(taken))


def calls(act: Callable[[], object]) -> int:
    """Calls of functions while something is done."""
    count = 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def calls_per_epoch(check: bool) -> int:
    """What two epochs more add, per epoch."""
    return (calls(lambda: Run(check, 5)) - calls(lambda: Run(check, 3))) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Run(True, 1)  # imports what torch needs for an optimizer, with checks or without
    pairs = paired(options.pairs, options.epochs)
    checked, unchecked = ([pair[side] for pair in pairs] for side in (0, 1))
    whole = [arm("", [run.whole for run in runs]) for runs in (checked, unchecked)]
    before = [arm("", [run.before for run in runs]) for runs in (checked, unchecked)]
    extra = arm("", [a.before - b.before for a, b in pairs])
    cost = ratio(extra, whole[1])
    table = Table(title=f"{options.epochs} epochs of examples/vae.py on digits, {len(pairs)} pairs")
    for column in ("medians", "with checks", "without", "with / without [95 %]"):
        table.add_column(column, justify="left" if column == "medians" else "right")
    for label, (ours, theirs) in (("whole call of fit", whole), ("before the first epoch", before)):
        quotient = "{:.3f} [{:.3f}, {:.3f}]".format(*ratio(ours, theirs))
        table.add_row(label, f"{ours.median:.1f} ms", f"{theirs.median:.1f} ms", quotient)
    per_epoch = [calls_per_epoch(check) for check in (True, False)]
    table.add_row("calls an epoch", *map(str, per_epoch), f"{per_epoch[0] / per_epoch[1]:.5f}")
    show(table)
    print(f"am.check on one batch: {check_alone(30):.1f} ms")
    print("cost of the checks: {:.2%} of a run [{:.2%}, {:.2%}]".format(*cost), end="; ")
    print(f"bar {BAR:.0%}: {'met' if cost[2] <= BAR else 'NOT met'}")


if __name__ == "__main__":
    main()
