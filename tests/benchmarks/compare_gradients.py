"""Draws of a gradient in `am.compare_gradients` against a plain loop over Pyro's `loss_and_grads`.

    python -m tests.benchmarks.compare_gradients
    python -m tests.benchmarks.compare_gradients --rounds 3 --draws 4000

The sigmoid belief network of the laws: four bits above 64 pixels, five images, float64, one thread.
Ours is the whole call with eight candidates: recordings and their comparison with the programs, all
draws, the exact reference, intervals, times and memory. Pyro's is a loop that collects the gradient
of each draw. Rounds alternate; ratios are taken within a round, of processor seconds (what the
machine does besides does not count) and of a clock. To reach: 8 times faster a draw; aim: 20 times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import pyro
import torch
from rich.console import Console
from rich.table import Table

import amortized as am
from tests.laws.belief_network import Network

CANDIDATES = {
    "score function": am.ScoreFunction(),
    "moving average": "moving_average",
    "leave one out": "leave_one_out",
    "ARM": "arm",
    "DisARM": "disarm",
    "REBAR": "rebar",
    "MuProp": "muprop",
    "enumeration": "enumerate",
}
PYRO = {"Trace_ELBO": pyro.infer.Trace_ELBO, "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO}


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and of a clock."""
    processor, clock = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - processor, time.perf_counter() - clock


def ours(network: Network, draws: int) -> am.GradientComparison:
    """One call of the library."""
    batch = (network.images, torch.ones(5))
    return am.compare_gradients(
        network.model, network.guide, batch, CANDIDATES, num_draws=draws, seed=0
    )


def theirs(network: Network, loss: pyro.infer.ELBO, draws: int) -> torch.Tensor:
    """The same by hand for one candidate, ``[draws, P]``."""
    batch, rows = (network.images, torch.ones(5)), []
    leaves = [leaf for _, leaf in pyro.get_param_store().named_parameters()]
    for _ in range(draws):
        for leaf in leaves:
            leaf.grad = None
        loss.loss_and_grads(network.model, network.guide, *batch)
        rows.append(torch.cat([leaf.grad.reshape(-1) for leaf in leaves]))
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    network, count = Network(), asked.draws * len(CANDIDATES)
    pyro.infer.Trace_ELBO().loss_and_grads(
        network.model, network.guide, network.images, torch.ones(5)
    )
    first = timed(lambda: ours(network, asked.draws))
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], **{name: [] for name in PYRO}}
    for _ in range(asked.rounds):
        found = timed(lambda: ours(network, asked.draws))
        taken["ours"].append((found[0] / count, found[1] / count))
        for name, loss in PYRO.items():
            # a loop is the same from draw to draw: fewer of them tell its speed
            some = max(100, asked.draws // 5)
            found = timed(lambda loss=loss, some=some: theirs(network, loss(), some))
            taken[name].append((found[0] / some, found[1] / some))
    table = Table("", "ms a draw (processor)", "ratio", "ms a draw (clock)", "ratio")
    for name, times in taken.items():
        cells = []
        for clock in (0, 1):
            pairs = zip(times, taken["ours"], strict=True)
            ratio = median(one[clock] / own[clock] for one, own in pairs)
            cells += [f"{1e3 * median(t[clock] for t in times):.3f}", f"{ratio:.1f}"]
        table.add_row(name, *cells)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{len(CANDIDATES)} candidates x {asked.draws} draws in "
        f"{count * median(t[0] for t in taken['ours']):.2f} processor seconds "
        f"(the first call of the process: {first[0]:.2f}); medians of {asked.rounds} rounds"
    )


if __name__ == "__main__":
    main()
