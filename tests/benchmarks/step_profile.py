"""Where a captured step spends its time, and what its arithmetic alone would take.

    python -m tests.benchmarks.step_profile [--work small large] [--rounds 200] [--clock cpu]

The VAEs of the benchmark against peers, one thread. Parts of ``svi.step`` are timed by themselves,
in turn, on the same batch: the captured step (replayed or compiled), Adam's kernel, and what is
left, which is the harness. Below stand two floors: the products of the networks' layers, forward
and backward, by torch's own calls on tensors of these shapes; and the noise. Medians in
microseconds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import amortized as am
from tests.benchmarks.peers.probabilistic import batches, our_loss, pair
from tests.benchmarks.peers.works import BY_NAME, LR, Work

Part = Callable[[], Any]


def products(work: Work) -> Part:
    """The products of the layers: x W, and the two of its gradient."""
    sizes = [(work.outputs, work.hidden), (work.hidden, 2 * work.latent)]
    sizes += [(work.latent, work.hidden), (work.hidden, work.outputs)]
    layers = []
    for inputs, outputs in sizes:
        x, w = torch.randn(work.batch, inputs), torch.randn(outputs, inputs)
        layers.append((x, w.t(), torch.randn(outputs), torch.randn(work.batch, outputs)))
    first = layers[0][0]

    def run() -> None:
        for x, w, b, _ in layers:
            torch.addmm(b, x, w)
        for x, w, _, g in reversed(layers):
            torch.mm(g.t(), x)
            if x is not first:  # data have no gradient
                torch.mm(g, w.t())

    return run


def parts(work: Work, mode: Any) -> dict[str, Part]:
    """What is timed, by name."""
    data, (model, guide) = batches(work), pair(work)
    svi = am.SVI(model, guide, our_loss(work), lr=LR, compile=mode)
    for i in range(40):
        svi.step(data[i % len(data)])
    stepper = svi._stepper
    steps: Any = stepper._compiled
    (found,) = (known[-1] for known in steps._met.values())
    step = found.compiled or found.replay
    return {
        f"svi.step, {mode}": lambda: svi.step(data[0]),
        f"  the captured step, {mode}": lambda: step(data[0])[0].item(),
        f"  Adam's kernel, {mode}": stepper.optimizer.step,
    }


def floors(work: Work) -> dict[str, Part]:
    """What no implementation by torch's calls goes below."""
    return {
        "floor: products of the layers": products(work),
        "floor: noise": lambda: torch.randn(work.batch, work.latent),
    }


def timed(every: dict[str, Part], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Microseconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, part in every.items():
            part()
            started = clock()
            for _ in range(10):
                part()
            seconds[name].append((clock() - started) / 10)
    return {name: 1e6 * median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=("small", "large"), default=("small", "large"))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for name in options.work:
        work = BY_NAME[name]
        every = {**parts(work, "graph"), **parts(work, "inductor"), **floors(work)}
        found = timed(every, options.rounds, clock)
        table = Table("part", "µs", "of the step", title=work.title, title_justify="left")
        for mode in ("graph", "inductor"):
            whole = found[f"svi.step, {mode}"]
            inside = [part for part in found if part.startswith("  ") and part.endswith(mode)]
            for part in (f"svi.step, {mode}", *inside):
                table.add_row(part, f"{found[part]:.0f}", f"{found[part] / whole:.0%}")
            rest = whole - sum(found[part] for part in inside)
            table.add_row(f"  the harness, {mode}", f"{rest:.0f}", f"{rest / whole:.0%}")
        for part in floors(work):
            table.add_row(part, f"{found[part]:.0f}", "")
        Console(width=100).print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    Console().print(f"torch {torch.__version__}, one thread, {options.clock} clock, load {load}")


if __name__ == "__main__":
    main()
