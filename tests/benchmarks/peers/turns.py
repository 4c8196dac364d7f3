"""The contestants of a work in turn: each in its own process, a short block of steps a round.

Why processes, and not one: a step by Pyro makes thousands of Python objects, and the collector's
work grows with whatever else lives in the process (JAX, torch's compiler); two compiled libraries
in turn cool each other's caches, as in no training; the threads of torch and XLA do not meet; peak
memory and the seconds to compile belong to one contestant; and a peer that is missing or dies takes
nobody along. While one has its turn the others wait for a line of input and use no processor. A
round lets each have one block in random order, so that a busy machine slows all alike, and ratios
are taken within a round.

Every child is bound to as many cores as there are threads: else XLA hands its work to another core.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.peers.works import Work
from tests.benchmarks.timing import Arm


@dataclass(frozen=True)
class Settings:
    """How to measure: threads a contestant, rounds, seconds a block, and the clock."""

    threads: int = 1
    rounds: int = 30
    block: float = 0.05
    clock: str = "wall"
    pin: bool = True
    fit_options: tuple[str, ...] = ()
    device: str = "cpu"

    def environment(self, cache: str) -> dict[str, str]:
        """What the libraries read when they are imported."""
        threads = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
        eigen = "true" if self.threads > 1 else "false"
        return {
            **os.environ,
            **dict.fromkeys(names, threads),
            "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen}",
            "JAX_PLATFORMS": self.device,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "BENCHMARK_DEVICE": self.device,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "BENCHMARK_CLOCK": self.clock,
        }

    def bind(self, process: int) -> None:
        """Binds a process to the last cores of those that this one may use."""
        if self.pin and sys.platform == "linux":
            cores = sorted(os.sched_getaffinity(0))[-self.threads :]
            os.sched_setaffinity(process, cores)


@dataclass
class Result:
    """What was measured of one contestant."""

    name: str
    arm: Arm
    low: float = 0.0
    high: float = 0.0
    """Quartiles of a step in milliseconds, over all rounds."""
    threads: float = 1.0
    """Processor seconds a wall second."""
    load_s: float = 0.0
    start_s: float = 0.0
    """Seconds of the first steps beyond what they take later: to trace, capture, compile."""
    peak_mb: float = 0.0
    losses: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        kept = ("name", "low", "high", "threads", "load_s", "start_s", "peak_mb")
        about = {name: getattr(self, name) for name in kept}
        last = self.losses[-100:]
        loss = float(np.mean(last)) if last else None
        return {**about, "ms": self.arm.median, "rounds_ms": self.arm.rounds, "loss": loss}


class Child:
    """A contestant's process."""

    def __init__(self, work: Work, name: str, settings: Settings, cache: Path) -> None:
        self.name, self.result = name, Result(name, Arm(name, lambda: None))
        self.absent: str | None = None
        """Why it takes no part, or no longer."""
        self._cache = tempfile.TemporaryDirectory(prefix="benchmark-")
        shutil.copytree(cache, self._cache.name, dirs_exist_ok=True)
        command = ["-m", "tests.benchmarks.peers.child", json.dumps(dataclasses.asdict(work)), name]
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=settings.environment(self._cache.name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        settings.bind(self._process.pid)

    def begin(self) -> None:
        """Waits for its first steps."""
        answer = self._read()
        if self.absent is None:
            self.result.load_s, self.result.start_s = answer["load_s"], answer["start_s"]

    def learn(self, steps: int) -> None:
        """Takes so many steps and keeps their losses."""
        if self.absent is None:
            self.result.losses = self.ask(learn=steps).get("losses", [])

    def block(self, seconds: float) -> dict[str, Any]:
        """Has one turn; empty if it died."""
        return self.ask(time=seconds) if self.absent is None else {}

    def end(self) -> None:
        """Asks for its peak memory."""
        if self.absent is None:
            self.result.peak_mb = self.ask(end=True).get("peak_mb", 0.0)

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._cache.cleanup()
        self._errors.close()

    def ask(self, **question: Any) -> dict[str, Any]:
        """One line there, one line back; empty, with the reason kept, if it died."""
        if self._process.stdin is None:
            raise RuntimeError("no pipe")
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            answer = json.loads(line)
            self.absent = answer.get("absent", self.absent)
            return answer
        self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        self.absent = f"its process died: {' '.join(last)[:300]}"
        return {}


def run(
    work: Work, names: Sequence[str], settings: Settings
) -> tuple[dict[str, Result], dict[str, str]]:
    """Results by contestant, and why others are left out."""
    children: list[Child] = []
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as cache:
            acquaint_with_compiler(settings, cache)
            for name in names:  # one after the other: their seconds to compile are measured
                child = Child(work, name, settings, Path(cache))
                children.append(child)
                child.begin()
                child.learn(work.learn)
        take_turns([child for child in children if child.absent is None], settings)
        for child in children:
            child.end()
    finally:
        for child in children:
            child.close()
    results = {child.name: child.result for child in children if child.absent is None}
    return results, {child.name: child.absent for child in children if child.absent is not None}


def acquaint_with_compiler(settings: Settings, cache: str) -> None:
    """Fills a cache with what torch's compiler learns once on a machine: what the processor can do.

    Contestants begin with a copy each, so that the first does not pay for all, and none finds the
    kernels of another.
    """
    code = "import torch; torch.compile(lambda x: x.sin().sum())(torch.ones(64))"
    environment = settings.environment(cache)
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)


def take_turns(children: Sequence[Child], settings: Settings) -> None:
    """Every round a block each, in random order."""
    order, shuffle = list(children), random.Random(0)
    steps: dict[str, list[float]] = {child.name: [] for child in children}
    threads: dict[str, list[float]] = {child.name: [] for child in children}
    for _ in range(settings.rounds):
        shuffle.shuffle(order)
        for child in order:
            answer = child.block(settings.block)
            if child.absent is None:
                child.result.arm.rounds.append(float(np.median(answer["ms"])))
                steps[child.name] += answer["ms"]
                threads[child.name].append(answer["threads"])
    for child in (child for child in children if child.absent is None):
        low, high = np.quantile(steps[child.name], (0.25, 0.75))
        child.result.low, child.result.high = float(low), float(high)
        child.result.threads = float(np.median(threads[child.name]))
