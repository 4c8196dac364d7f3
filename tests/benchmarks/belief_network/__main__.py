"""Discrete estimators on a sigmoid belief network: training by processor time, and variance.

    python -m tests.benchmarks.belief_network --data binarized_mnist.npz --out runs/sbn
    python -m tests.benchmarks.belief_network --data binarized_mnist.npz --out runs/sbn2 --layers 2
        --minutes 8 --estimators disarm rebar relax
    python -m tests.benchmarks.belief_network --out runs/sbn --resume

1. With several rates in --lr, a trial of the first estimator (leave_one_out, if it takes part) with
   each, and the rate with the higher training ELBO after --trial minutes is taken for all.
2. Each estimator is trained with each seed for --minutes of processor time, --jobs at a time, each
   in a process of its own: `training`. The ELBO of the same training images is followed.
3. When all training is over, the variance of each estimator's gradient at one checkpoint, that of
   the first estimator halfway: `variance`.
4. Tables, a figure and a page in Markdown, with the published numbers beside: `report`.

Everything is written as it comes. A run that fails is reported, and the others go on. --resume
keeps what is finished in the folder, with the settings that are written there, and does the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.belief_network import report
from tests.benchmarks.belief_network.plan import (
    DEFAULT,
    ESTIMATORS,
    REFERENCE,
    Folder,
    Settings,
    read,
    write,
)

ROOT = Path(__file__).parents[3]


def child(module: str, job: Mapping[str, Any], limit: float, threads: int) -> str | None:
    """Runs a part in a process of its own; why it failed, or None."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    command = ["-W", "ignore", "-m", f"tests.benchmarks.belief_network.{module}", json.dumps(job)]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                [sys.executable, *command],
                env={**os.environ, **dict.fromkeys(names, str(threads))},
                cwd=ROOT,
                stdout=errors,
                stderr=errors,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {limit:.0f} s"
        if not done.returncode:
            return None
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {done.returncode}")[:400]


class Benchmark:
    """One folder of runs."""

    def __init__(self, options: argparse.Namespace, settings: Settings, console: Console) -> None:
        self.options, self.settings, self.console = options, settings, console
        self.folder = Folder(options.out.resolve())

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def train(self, estimator: str, seed: int, settings: Settings, file: Path) -> dict[str, Any]:
        """One run, unless it is finished already; what was reached."""
        found = read(file)
        if found.get("finished"):
            return found
        file.unlink(missing_ok=True)
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        job = {"settings": settings.as_dict(), "estimator": estimator, "seed": seed}
        started, limit = time.perf_counter(), 600 * settings.minutes + 3600
        failure = child("training", {**job, "file": str(file)}, limit, self.options.threads)
        found = read(file)
        if failure is not None:
            found = {"estimator": estimator, "seed": seed, **found, "finished": False}
            found["error"] = found.get("error", failure)
            write(file, found)
        took = time.perf_counter() - started
        self.say(f"{report.line(found)}; {took:.0f} s in all")
        return found

    def choose_rate(self, rates: Sequence[float]) -> Settings:
        """The settings with the rate that does best in a short trial."""
        if len(rates) == 1:
            return dataclasses.replace(self.settings, lr=rates[0])
        minutes, reached = self.options.trial, {}
        for lr in rates:
            settings = dataclasses.replace(self.settings, lr=lr, minutes=minutes, test_images=100)
            if settings.compile != "off":  # to compile would take most of a trial
                settings = dataclasses.replace(settings, compile="graph")
            name = reference(self.options.estimators)
            found = self.train(name, 0, settings, self.folder.trial(lr))
            if found.get("finished"):
                reached[lr] = found["train_elbo"]
        best = max(reached, key=lambda lr: reached[lr], default=rates[0])
        shown = ", ".join(f"{lr:g}: {elbo:.2f}" for lr, elbo in reached.items())
        self.say(f"learning rate {best:g}, by a trial of {minutes:g} min each ({shown})")
        return dataclasses.replace(self.settings, lr=best)

    def train_all(self) -> None:
        def train(run: tuple[int, str]) -> None:
            seed, estimator = run
            self.train(estimator, seed, self.settings, self.folder.run(estimator, seed))

        self._each(train, itertools.product(range(self.options.seeds), self.options.estimators))

    def variances(self) -> None:
        """Each estimator's, at the checkpoint of one run."""
        name = self.options.checkpoint_of or reference(self.options.estimators)
        shared = self.half(name, 0)
        if shared is None:
            return self.say(f"no variances: the run of {name} has no checkpoint")

        def measure(estimator: str) -> None:
            file = self.folder.variance(estimator)
            if read(file).get("shared") == str(shared) and "variance" in read(file):
                return
            own = self.half(estimator, 0)
            job = {"settings": self.settings.as_dict(), "estimator": estimator, "file": str(file)}
            job |= {"shared": str(shared), "own": None if own is None else str(own)}
            failure = child("variance", job, 3600.0, self.options.threads)
            if failure is not None:
                write(file, {"error": failure})
            found = read(file)
            shown = f"{found['variance']:.3g}" if "variance" in found else f"failed: {failure}"
            self.say(f"{estimator}: variance per element {shown}")

        self._each(measure, self.options.estimators)

    def _each(self, part: Callable[[Any], None], jobs: Iterable[Any]) -> None:
        """As many at a time as was asked for; one at a time ends with this process."""
        if self.options.jobs == 1:
            for job in jobs:
                part(job)
            return
        with ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(part, jobs))

    def half(self, estimator: str, seed: int) -> Path | None:
        """The checkpoint that a run saved halfway."""
        file = self.folder.run(estimator, seed)
        path = read(file).get("half")
        return None if path is None else file.parent / path


def reference(estimators: Sequence[str]) -> str:
    """Whose trial runs and whose checkpoint are used."""
    return REFERENCE if REFERENCE in estimators else estimators[0]


def main() -> None:
    options = arguments()
    # as with Ctrl-C a lone run under way ends with this process, several are waited for, and what
    # is there is published
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=150)
    settings = settings_of(options)
    benchmark = Benchmark(options, settings, console)
    known = read(benchmark.folder.settings)
    if known and not options.resume:
        raise SystemExit(f"{options.out} has runs already: add --resume, or take another folder")
    if known:
        benchmark.settings = Settings(**known)
        console.print(f"resumed: {benchmark.settings}", highlight=False)
    else:
        benchmark.settings = benchmark.choose_rate(options.lr)
        write(benchmark.folder.settings, benchmark.settings.as_dict())
    try:
        benchmark.train_all()
        benchmark.variances()
    finally:
        report.publish(benchmark.folder, benchmark.settings, options, console)


def settings_of(options: argparse.Namespace) -> Settings:
    """What was asked for, with the first learning rate."""
    names = {field.name for field in dataclasses.fields(Settings)} - {"lr", "data"}
    data = options.data if options.data == "digits" else str(Path(options.data).resolve())
    given = {name: getattr(options, name) for name in names}
    return Settings(lr=options.lr[0], data=data, **given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of all that is written")
    add("--resume", action="store_true", help="keep what is finished in the folder")
    add("--data", default="digits", help="the .npz of binarized MNIST, or digits")
    add("--minutes", type=float, default=5.0, help="of processor time of each run")
    add("--layers", type=int, default=1, help="stochastic layers")
    add("--width", type=int, default=200, help="bits of a layer")
    add("--estimators", nargs="+", choices=ESTIMATORS, default=list(DEFAULT))
    add("--seeds", type=int, default=2, help="runs of each, with the seeds 0, 1, ...")
    add("--lr", type=float, nargs="+", default=[1e-3, 3e-4], help="Adam's; of several by trial")
    add("--trial", type=float, default=1.0, help="minutes of each trial")
    add("--batch", type=int, default=24, help="images a step")
    add("--compile", choices=("auto", "inductor", "graph", "off"), default="auto")
    add("--subset", type=int, default=2000, help="training images for the ELBO")
    add("--particles", type=int, default=5, help="draws for each of them")
    add("--test-images", type=int, default=10_000, help="for the bounds at the end")
    add("--test-particles", type=int, default=100, help="draws for each of them")
    add("--checkpoint-of", choices=ESTIMATORS, help="whose checkpoint the variances are taken at")
    add("--adapt", type=int, default=2000, help="steps of an estimator's own learning there")
    add("--draws", type=int, default=1000, help="of the gradient")
    add("--jobs", type=int, default=1, help="runs at a time: no more than there are cores")
    add("--threads", type=int, default=1, help="of each run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
