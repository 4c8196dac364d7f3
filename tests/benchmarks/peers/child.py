"""One contestant in a process of its own: ``python -m tests.benchmarks.peers.child WORK NAME``.

Speaks JSON, one line each way, on standard input and output. First it says what it cost to begin,
or why it is left out. Then ``{"learn": n}`` is answered by the losses of the next n steps,
``{"time": seconds}`` by the milliseconds of each of as many steps as fit in there, and
``{"end": true}`` by the peak memory. WORK is a `Work` as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.peers.works import AUTO, CUDA_GRAPH, MODES, Work

FACTORIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{mode: ("probabilistic", "our_step", {"mode": mode.split()[1]}) for mode in (*MODES, AUTO)},
    "amortized loss": ("probabilistic", "loss_and_grads", {"whose": "ours"}),
    "Pyro loss": ("probabilistic", "loss_and_grads", {"whose": "theirs"}),
    "Pyro SVI.step": ("probabilistic", "their_step", {}),
    "Pyro loss, fused Adam": ("probabilistic", "their_loss_with_fused_adam", {}),
    "by hand, eager": ("by_hand", "eager", {}),
    "torch.compile": ("by_hand", "eager", {"compiled": True}),
    "torch.compile, gradient": ("by_hand", "compiled_gradient", {}),
    "torch.compile, gradient and Adam": ("by_hand", "compiled_whole", {}),
    CUDA_GRAPH: ("by_hand", "compiled_gradient", {"mode": "reduce-overhead"}),
    "NumPyro": ("with_numpyro", "update", {}),
}
"""Module, function and its arguments, for each contestant."""
FIRST_STEPS = 30
"""Steps in which everybody has captured, traced or compiled."""


def make(work: Work, name: str) -> Callable[[int], float]:
    """The contestant's step, and the seed of its noise.

    Raises:
        ImportError: its package is not installed, or does not have it.
    """
    module, function, arguments = FACTORIES[name]
    found = importlib.import_module(f"tests.benchmarks.peers.{module}")
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)
    return getattr(found, function)(work, **arguments)


class Contestant:
    """Counts the steps, and times them."""

    def __init__(self, step: Callable[[int], float], clock: Callable[[], float]) -> None:
        self.step, self.clock, self.steps = step, clock, 0

    def learn(self, steps: int) -> list[float]:
        """The losses of so many steps."""
        losses = [self.step(self.steps + i) for i in range(steps)]
        self.steps += steps
        return losses

    def timed(self, steps: int) -> list[float]:
        """Milliseconds of each step."""
        found = []
        for i in range(self.steps, self.steps + steps):
            started = self.clock()
            self.step(i)
            found.append(1e3 * (self.clock() - started))
        self.steps += steps
        return found

    def within(self, seconds: float) -> dict[str, Any]:
        """Milliseconds of as many steps as fit, at least three; the first ones warm the caches."""
        (guess,) = self.timed(1)
        self.timed(min(10, int(0.1e3 * seconds / guess)))
        wall, processor = time.perf_counter(), time.process_time()
        milliseconds = self.timed(max(3, int(1e3 * seconds / guess)))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return {"ms": milliseconds, "threads": processor / wall}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line."""
        if "learn" in question:
            return {"losses": self.learn(question["learn"])}
        if "time" in question:
            return self.within(question["time"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def begin(work: Work, name: str, clock: Callable[[], float]) -> tuple[Contestant, dict[str, Any]]:
    """The contestant after its first steps; what loading and starting cost in seconds."""
    started = time.perf_counter()
    step = make(work, name)
    loaded = time.perf_counter()
    contestant = Contestant(step, clock)
    losses = contestant.learn(FIRST_STEPS)
    stepped = time.perf_counter()
    usual = sorted(contestant.timed(5))[2] / 1e3
    start = max(0.0, stepped - loaded - FIRST_STEPS * usual)
    return contestant, {"load_s": loaded - started, "start_s": start, "first_loss": losses[0]}


def main() -> None:
    # What libraries print goes to standard error, so that standard output has the answers only.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    clock = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "cpu" else time.perf_counter
    try:
        contestant, cost = begin(Work(**json.loads(sys.argv[1])), sys.argv[2], clock)
    except ImportError as error:
        return say({"absent": str(error)})
    say(cost)
    for line in sys.stdin:
        question = json.loads(line)
        say(contestant.answer(question))
        if "end" in question:
            return None


if __name__ == "__main__":
    main()
