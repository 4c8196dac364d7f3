"""What it costs to train in several processes, each pinned to one core, with gloo.

    python -m tests.benchmarks.distributed --out FOLDER [--processes 1 2 4]

1. Training: milliseconds a step and rows a second of a variational autoencoder with --batch rows
   for each process, as the programs are written and captured. In one process there is no reduction.
2. The reduction alone, of 10^3 to 10^7 parameters.
3. The latency a and the bandwidth b with which 2 (W - 1) a + 2 (W - 1) / W * 4 P / b explains it.

FOLDER gets distributed.json, distributed.md and distributed.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortized as am
from amortized.fit.buffers import MovingBuffers
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.distributed import current_group
from amortized.fit.reduction import Part, Reduction

SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
PIXELS, HIDDEN, CODES = 784, 200, 20
WARM = 40


class Times(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, state: FitState) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """The median of a step, once all is warm."""
        ends = self.ends[WARM:]
        return statistics.median(b - a for a, b in itertools.pairwise(ends))


def autoencoder() -> tuple[Any, Any]:
    encode = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * CODES))
    decode = nn.Sequential(nn.Linear(CODES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(CODES), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        loc, scale = encode(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide


def training(compile: Any, batch: int, steps: int) -> float:
    """Seconds a step."""
    size = current_group().size
    torch.manual_seed(0)
    x = (torch.rand(20 * batch * size, PIXELS) < 0.3).float()
    times = Times()
    svi = am.SVI(*autoencoder(), compile=compile)
    options = {"batch_size": batch * size, "progress": False, "check": False, "seed": 0}
    svi.fit(x, max_steps=WARM + steps, callbacks=[times], **options)
    return times.seconds()


def reduction(parameters: int, repeats: int) -> float:
    """Seconds of one, of a gradient in one tensor."""
    leaf = nn.Parameter(torch.zeros(parameters))
    reduce, times = Reduction(current_group()), []
    part = Part([leaf], lambda: {"leaf": leaf}, MovingBuffers([]), 1.0)
    for _ in range(repeats + 5):
        leaf.grad = torch.ones(parameters)
        reduce.had_a_batch = True
        begin = time.perf_counter()
        reduce.reduce(part)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[5:])


def work(options: argparse.Namespace) -> None:
    """One process: its numbers as a line of JSON."""
    rank, size = options.rank, options.size
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{options.meet}", rank=rank, world_size=size
        )
    found: dict[str, Any] = {
        mode: training(mode, options.batch, options.steps) for mode in ("off", "graph")
    }
    if size > 1:
        found["reduction"] = [reduction(n, max(10, min(300, 10**8 // n))) for n in SIZES]
        torch.distributed.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


def measured(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """What the first of so many processes says."""
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--meet", f"{folder}/meet", "--size", str(size), "--batch", str(options.batch)]
        shared += ["--steps", str(options.steps)]
        command = [sys.executable, "-m", "tests.benchmarks.distributed", *shared]
        running = [
            subprocess.Popen([*command, "--rank", str(r)], stdout=subprocess.PIPE, text=True)
            for r in range(size)
        ]
        said = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit(f"a process of {size} failed")
    return json.loads(said[0])


def fitted(size: int, seconds: list[float]) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes a second, by relative least squares."""
    bytes_sent = 2 * (size - 1) / size * 4 * np.array(SIZES)
    design = np.stack([np.full(len(SIZES), 2.0 * (size - 1)), bytes_sent], 1)
    times = np.array(seconds)
    latency, inverse = np.linalg.lstsq(design / times[:, None], np.ones(len(SIZES)), rcond=None)[0]
    return float(latency), float(1 / inverse)


def page(results: dict[str, Any]) -> str:
    """The tables."""
    batch, found = results["batch"], results["processes"]
    lone = found.get("1")
    lines = [f"{batch} rows a process and step, one core each, gloo.", ""]
    lines += ["| Processes | Step | ms | rows/s | times one process |", "|---|---|---|---|---|"]
    for size, numbers in found.items():
        for mode, name in (("off", "eager"), ("graph", "captured")):
            rate = int(size) * batch / numbers[mode]
            gain = "" if lone is None else f"{rate * lone[mode] / batch:.2f}"
            lines.append(f"| {size} | {name} | {1e3 * numbers[mode]:.2f} | {rate:,.0f} | {gain} |")
    several = {size: numbers for size, numbers in found.items() if "reduction" in numbers}
    head = " | ".join(f"{size} processes, ms" for size in several)
    lines += ["", f"| Parameters | {head} |", "|---|" + "---|" * len(several)]
    for index, count in enumerate(SIZES):
        row = " | ".join(f"{1e3 * n['reduction'][index]:.3f}" for n in several.values())
        lines.append(f"| {count:,} | {row} |")
    lines.append("")
    for size, numbers in several.items():
        latency, bandwidth = fitted(int(size), numbers["reduction"])
        lines.append(
            f"{size} processes: a = {1e6 * latency:.0f} µs a message, "
            f"b = {bandwidth / 1e9:.2f} GB/s."
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """The cost of a reduction against the number of parameters."""
    # slow to import, and the workers do without
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(6, 4))
    fine = np.logspace(3, 7, 50)
    for size, numbers in results["processes"].items():
        if "reduction" not in numbers:
            continue
        (line,) = axes.loglog(SIZES, np.array(numbers["reduction"]) * 1e3, "o", label=f"{size}")
        latency, bandwidth = fitted(int(size), numbers["reduction"])
        count = int(size)
        model = 2 * (count - 1) * latency + 2 * (count - 1) / count * 4 * fine / bandwidth
        axes.loglog(fine, model * 1e3, color=line.get_color())
    axes.set_xlabel("parameters")
    axes.set_ylabel("milliseconds of a reduction")
    axes.legend(title="processes")
    plt.tight_layout()
    plt.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/distributed"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    for name in ("--rank", "--size"):
        parser.add_argument(name, type=int)
    parser.add_argument("--meet")
    options = parser.parse_args()
    if options.rank is not None:
        work(options)
        return
    found = {str(size): measured(size, options) for size in options.processes}
    results = {"batch": options.batch, "sizes": SIZES, "processes": found}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "distributed.json").write_text(json.dumps(results, indent=2) + "\n")
    (options.out / "distributed.md").write_text(page(results))
    draw(results, options.out / "distributed.png")
    print(page(results))


if __name__ == "__main__":
    main()
