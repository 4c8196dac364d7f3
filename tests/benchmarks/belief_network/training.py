"""One training by processor time in a process of its own: ``python -m ...training JOB``.

JOB is JSON: the settings, the estimator, its seed, and the file of the report. That is written
after every look at the ELBO, so that what was reached is known whatever happens later. The clock is
the processor time of this process, which does not run while the machine does other work. It runs
from the first batch on, capture and compilation included, and stands still while the ELBO is looked
at. Halfway a checkpoint is saved beside the report.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import amortized as am
from amortized.fit.callbacks import Callback, FitState
from tests.benchmarks.belief_network.plan import Settings, write

EPOCH = 100
"""Steps between two looks at the clock."""
FIRST, GROWTH = 1.0, 1.15
"""The first look at the ELBO is after so many seconds, and then after so many times as many, but
never later than a thirtieth of the training after the last."""


class Watch(Callback):
    """Follows the bound on the same training images, and ends training when its time is up."""

    def __init__(self, settings: Settings, svi: am.SVI, images: torch.Tensor, file: Path) -> None:
        self.settings, self.svi, self.images, self.file = settings, svi, images, file
        self.curve: list[dict[str, float]] = []
        self.report: dict[str, Any] = {}
        self.total, self.due = 60 * settings.minutes, FIRST
        self._started = self._wall_started = 0.0
        self._seconds = self._wall = 0.0

    def on_fit_start(self, state: FitState) -> None:
        self._start()

    def on_train_epoch_end(self, state: FitState) -> None:
        self._pause()
        over = self._seconds >= self.total
        if over or self._seconds >= self.due:
            self._look(state.step)
        if "half" not in self.report and self._seconds >= 0.5 * self.total and state.save:
            path = state.save(self.file.with_suffix(""))
            self.report |= {"half": str(path.relative_to(self.file.parent)), "half_at": state.step}
        if over:
            state.stop = "time is up"
        self._start()

    def _start(self) -> None:
        self._started, self._wall_started = time.process_time(), time.perf_counter()

    def _pause(self) -> None:
        self._seconds += time.process_time() - self._started
        self._wall += time.perf_counter() - self._wall_started

    def _look(self, step: int) -> None:
        particles = self.settings.particles
        elbo = self.svi.evaluate(self.images, num_particles=particles, seed=0)["elbo"]
        self.curve.append({"step": step, "seconds": self._seconds, "elbo": elbo})
        self.due = min(GROWTH * self._seconds, self._seconds + self.total / 30)
        self.report |= {"steps": step, "seconds": self._seconds, "train_elbo": elbo}
        self.report |= {"processor": self._seconds / self._wall, "curve": self.curve}
        write(self.file, self.report)


def train(settings: Settings, estimator: str, seed: int, file: Path) -> None:
    """The training, and the bound on the test images at its end."""
    torch.manual_seed(seed)
    program = settings.program()
    svi = settings.svi(estimator, program, lr=settings.lr, compile=settings.compile)
    watch = Watch(settings, svi, settings.following(program.train), file)
    made = settings.recipe(estimator)
    watch.report |= {"estimator": estimator, "seed": seed, "lr": settings.lr, "repr": repr(made)}
    watch.report |= {"bias": made.bias, "load": [os.getloadavg()[0]], "finished": False}
    try:
        svi.fit(
            program.train,
            max_epochs=10**6,
            limit_train_batches=EPOCH,
            batch_size=settings.batch,
            seed=seed,
            callbacks=[watch],
            progress=False,
        )
        test = program.test[: settings.test_images]
        found = svi.evaluate(test, num_particles=settings.test_particles, seed=0)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        watch.report["error"] = f"{type(error).__name__}: {reason}"[:600]
        write(file, watch.report)
        raise
    watch.report["test"] = {name: found.get(name) for name in ("elbo", "log_evidence")}
    watch.report["load"].append(os.getloadavg()[0])
    write(file, {**watch.report, "finished": True})


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    train(Settings(**job["settings"]), job["estimator"], job["seed"], Path(job["file"]))


if __name__ == "__main__":
    main()
