"""What the checks before training cost: ``fit(check=True)`` against ``fit(check=False)``.

    python -m tests.benchmarks.check_overhead [--pairs 9] [--epochs 100]

The VAE of ``examples/vae.py`` on scikit-learn's digits, 100 epochs with validation. Each pair of
runs starts from the same seed, in random order; times are processor time of one thread, of the call
of ``fit`` only. The bar is a ratio of 1.03.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import pyro
import torch
from rich.table import Table

import amortized as am
from tests.benchmarks.programs import example
from tests.benchmarks.timing import Arm, ratio, show

BAR = 1.03
BATCH = 128


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def trained(check: bool, epochs: int) -> tuple[float, torch.Tensor]:
    """Seconds of one training, and a parameter at its end."""
    pyro.set_rng_seed(0)
    program = example("vae").program()
    svi = am.SVI(program.model, program.guide, am.VariationalLoss(am.ELBO(kl="analytic")), lr=1e-3)
    taken = seconds(
        lambda: svi.fit(
            program.train,
            program.val,
            max_epochs=epochs,
            batch_size=BATCH,
            seed=0,
            check=check,
            progress=False,
        )
    )
    return taken, program.guide.encoder[0].weight.detach()


def compared(pairs: int, epochs: int) -> tuple[Arm, Arm]:
    """Interleaved runs with and without; both must end in the same parameters."""
    arms = {check: Arm(f"check={check}", lambda: None) for check in (True, False)}
    order, shuffle = [True, False], random.Random(0)
    for number in range(pairs):
        shuffle.shuffle(order)
        ends = {}
        for check in order:
            taken, ends[check] = trained(check, epochs)
            arms[check].rounds.append(1e3 * taken)
        if not torch.equal(ends[True], ends[False]):
            raise RuntimeError("training with checks ends elsewhere than training without")
        print(
            f"pair {number + 1}: {arms[True].rounds[-1] / arms[False].rounds[-1]:.4f}", flush=True
        )
    return arms[True], arms[False]


def check_alone(times: int) -> list[float]:
    """Milliseconds of ``am.check`` on one batch."""
    program = example("vae").program()
    loss = am.VariationalLoss(am.ELBO(kl="analytic"))
    batch = program.train[:BATCH]

    def check() -> None:
        report = am.check(program.model, program.guide, batch, loss=loss)
        if not report.ok:
            raise RuntimeError(str(report))

    return [1e3 * seconds(check) for _ in range(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    alone = check_alone(30)
    trained(True, 1)  # imports what torch needs for an optimizer
    checked, unchecked = compared(options.pairs, options.epochs)
    middle, low, high = ratio(checked, unchecked)
    table = Table(
        title=f"{options.epochs} epochs of examples/vae.py on digits, {options.pairs} pairs"
    )
    for column in ("", "median"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("fit(check=True)", f"{checked.median:.0f} ms")
    table.add_row("fit(check=False)", f"{unchecked.median:.0f} ms")
    table.add_row("ratio [95 %]", f"{middle:.4f} [{low:.4f}, {high:.4f}]")
    table.add_row(
        "am.check on one batch", f"{np.median(alone):.1f} ms (the first {alone[0]:.0f} ms)"
    )
    share = np.median(alone) / unchecked.median
    table.add_row("the same, of a run without", f"{share:.2%}")
    show(table)
    print(f"bar: a ratio of at most {BAR}: {'met' if middle <= BAR else 'NOT met'}")


if __name__ == "__main__":
    main()
