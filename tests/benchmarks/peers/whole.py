"""Whole processes, start to end: trainings from the command line against plain scripts; imports.

`amortized fit examples/vae.py` looks for mistakes in the pair, describes it, trains with
validation, and ends with the test ELBO and an evidence bound (100 draws an image), which the
scripts do not have; early stopping is off, so that all take the same steps. Bytecode and compiled
kernels are kept in a folder of this measurement, as they are kept on a user's machine; the run that
fills it, of 100 epochs, is shown apart ("first run").
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tests.benchmarks.peers.turns import Settings
from tests.benchmarks.timing import Arm, ratio

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "scripts"
EPOCHS = {100: 5, 1000: 2}
"""Rounds of trainings of so many epochs."""
FASTER = {
    100: {"Pyro script": 1.7, "PyTorch script": 1.0},
    1000: {"Pyro script": 3.5, "PyTorch script": 1.3},
}
"""How much faster than each script; Pyro without its validation is there to be seen."""
IMPORT = 1.1
"""What `import amortized` may cost, in units of `import pyro`."""
IMPORT_ROUNDS = 15
BOUND = re.compile(r"test ELBO\s+(-?[\d.]+)")

Rows = list[tuple[str, ...]]
Measured = tuple[Table, Rows, dict[str, Any]]


def whole(settings: Settings, rounds: int) -> Measured:
    """Trainings of `EPOCHS`, each with its own number of rounds (at most ``rounds``)."""
    table = table_of("whole processes on digits, VAE 64-200-8, batch 128")
    rows, report = [], {}
    with Caches(settings) as caches:
        for epochs, turns in EPOCHS.items():
            arms = caches.in_turn(trainings(epochs, settings), min(turns, rounds))
            show(table, f"{epochs} epochs", arms, caches)
            ours, *peers = arms
            for theirs in peers:
                middle, *interval = ratio(theirs, ours)
                faster = FASTER[epochs].get(theirs.name)
                asked = "" if faster is None else f">= {faster:g}x faster"
                about = (f"{epochs} epochs", ours.name, theirs.name, asked)
                measured, reached = judged(middle, interval, middle >= (faster or 0.0))
                rows.append((*about, measured, "" if faster is None else reached))
            report[str(epochs)] = {arm.name: arm.rounds for arm in arms}
    return table, rows, report


def imports(settings: Settings, rounds: int) -> Measured:
    """`import amortized` against `import pyro`."""
    commands = {f"import {name}": ["-c", f"import {name}"] for name in ("amortized", "pyro")}
    table = table_of("processes that only import")
    with Caches(settings) as caches:
        arms = caches.in_turn(commands, min(rounds, IMPORT_ROUNDS))
        show(table, "import", arms, caches)
    middle, *interval = ratio(arms[0], arms[1])
    about = ("import", arms[0].name, arms[1].name, f"<= {IMPORT}x its time")
    row = (*about, *judged(middle, interval, middle <= IMPORT))
    return table, [row], {arm.name: arm.rounds for arm in arms}


def trainings(epochs: int, settings: Settings) -> dict[str, list[str]]:
    """The processes to compare; the longer trainings leave out what is only there to be seen."""
    script = [str(SCRIPTS / "pyro_vae.py"), str(epochs)]
    seen = {} if epochs > 100 else {"Pyro script, validation off": [*script, "off"]}
    return {
        "amortized fit": fit(epochs, settings.fit_options),
        "Pyro script": script,
        **seen,
        "PyTorch script": [str(SCRIPTS / "torch_vae.py"), str(epochs)],
    }


def fit(epochs: int, more: Sequence[str]) -> list[str]:
    """The command line, with early stopping off."""
    options = ["--epochs", str(epochs), "--patience", "0", "--no-progress", *more]
    return ["-m", "amortized", "fit", str(ROOT / "examples" / "vae.py"), *options]


class Caches:
    """A folder for bytecode and compiled kernels, and what it cost to fill it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        folder = self._folder.name
        self.environment = settings.environment(folder)
        self.environment["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.first: dict[str, float] = {}
        self.printed: dict[str, str] = {}

    def __enter__(self) -> Caches:
        # so that the first process does not write the bytecode of what all import
        code = "import pyro, torch._dynamo, sklearn.datasets"
        command = [sys.executable, "-W", "ignore", "-c", code]
        subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return self

    def __exit__(self, *about: object) -> None:
        self._folder.cleanup()

    def in_turn(self, commands: Mapping[str, Sequence[str]], rounds: int) -> list[Arm]:
        """Seconds of each process in each round, in random order; what is new has one run more."""
        arms = {name: Arm(name, lambda: None) for name in commands}
        order, shuffle = list(commands), random.Random(0)
        for name in order:
            if name not in self.first:
                self.first[name] = self.process(name, commands[name])
        for _ in range(rounds):
            shuffle.shuffle(order)
            for name in order:
                arms[name].rounds.append(self.process(name, commands[name]))
        return list(arms.values())

    def process(self, name: str, command: Sequence[str]) -> float:
        """Seconds from start to end."""
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.settings.bind(child.pid)
        self.printed[name], errors = child.communicate()
        if child.returncode:
            raise RuntimeError(f"{name} ended with {child.returncode}: {errors[-500:]}")
        return time.perf_counter() - started


def table_of(title: str) -> Table:
    table = Table(title=f"{title}: seconds from start to end", title_justify="left")
    for column in ("work", "process", "median", "quartiles", "first run", "test ELBO"):
        table.add_column(column, justify="left" if column in ("work", "process") else "right")
    return table


def show(table: Table, work: str, arms: Sequence[Arm], caches: Caches) -> None:
    """One row a process; the first run filled the caches and is not in the median."""
    for arm in arms:
        low, high = np.quantile(arm.rounds, (0.25, 0.75))
        bound = BOUND.search(caches.printed[arm.name])
        numbers = (f"{arm.median:.2f}", f"{low:.2f} - {high:.2f}", f"{caches.first[arm.name]:.2f}")
        table.add_row(work, arm.name, *numbers, bound[1] if bound else "")


def judged(middle: float, interval: Sequence[float], reached: bool) -> tuple[str, str]:
    low, high = interval
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]", "yes" if reached else "NOT YET"
