"""What is trained and measured, where its files are, and the published numbers beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import amortized as am
from amortized.estimators.base import Estimator
from amortized.estimators.measure_valued import MeasureValued
from amortized.estimators.muprop import MuProp
from amortized.estimators.rebar import REBAR
from amortized.estimators.relax import RELAX
from amortized.estimators.relaxed import Relaxed
from amortized.estimators.straight_through import StraightThrough
from tests.benchmarks.programs import example

ESTIMATORS: Mapping[str, Callable[[], Estimator]] = {
    "leave_one_out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "nvil": lambda: am.ScoreFunction(am.NeuralBaseline()),
    "disarm": am.DisARM,
    "rebar": REBAR,
    "relax": lambda: RELAX(relaxed_model=True),
    "relax_network": RELAX,
    "muprop": MuProp,
    "concrete": Relaxed,
    "moving_average": lambda: am.ScoreFunction(am.MovingAverage()),
    "arm": am.ARM,
    "rebar_tied": lambda: REBAR(tied=True),
    "rebar_temperature": lambda: REBAR(learn_temperature=True),
    "rebar_improved": lambda: REBAR(improved=True),
    "straight_through": StraightThrough,
    "gumbel": lambda: StraightThrough("gumbel"),
    "reinmax": lambda: StraightThrough("reinmax"),
    "measure_valued": MeasureValued,
}
"""As a user would write them, with their defaults wherever the papers' model allows."""
DEFAULT = tuple(ESTIMATORS)[:8]
REFERENCE = "leave_one_out"
"""Trial runs are its, and so is the shared checkpoint, if it takes part."""

PUBLISHED: Mapping[int, Mapping[str, float]] = {
    1: {"concrete": -111.3, "nvil": -112.5, "muprop": -111.7, "rebar": -111.6, "relax": -111.20},
    2: {"concrete": -99.62, "nvil": -99.6, "muprop": -99.07, "rebar": -98.22, "relax": -98.00},
}
"""Highest training ELBO on binarized MNIST by the number of layers: Grathwohl et al. 2018, whose
columns for Concrete, NVIL and MuProp are those of Tucker et al. 2017."""
EPOCHS: Mapping[int, Mapping[str, int]] = {
    1: {"rebar": 857, "relax": 531},
    2: {"rebar": 900, "relax": 620},
}
"""Theirs until REBAR's best, in epochs of 50,000 images in batches of 24."""
THEIR_EPOCH = 50_000 // 24


@dataclass(frozen=True)
class Settings:
    """One benchmark: everything that its numbers depend on."""

    data: str = "digits"
    """The file of binarized MNIST, or "digits"."""
    layers: int = 1
    width: int = 200
    minutes: float = 5.0
    lr: float = 1e-3
    batch: int = 24
    compile: str = "auto"
    subset: int = 2000
    """Training images on which the ELBO is followed."""
    particles: int = 5
    """Draws for each of them."""
    test_images: int = 10_000
    test_particles: int = 100
    adapt: int = 2000
    """Steps in which an estimator learns at the shared checkpoint, model and guide held."""
    draws: int = 1000
    """Of the gradient, for its variance."""

    def program(self) -> am.Program:
        """The pair of programs with fresh weights, and the data."""
        data = ("digits", "") if self.data == "digits" else ("binarized-mnist", self.data)
        return example("sigmoid_belief_network").program(self.layers, self.width, *data)

    def recipe(self, estimator: str) -> Estimator:
        """The estimator; the first layer's KL has no closed form once there is a second."""
        if estimator == "concrete" and self.layers > 1:
            return Relaxed(terms="relaxed")
        return ESTIMATORS[estimator]()

    def published(self, estimator: str) -> float | None:
        """The published ELBO, where the data are the same and the network is."""
        if self.data == "digits" or self.width != 200:
            return None
        return PUBLISHED.get(self.layers, {}).get(estimator)

    def svi(self, estimator: str, program: am.Program, **options: Any) -> am.SVI:
        """The estimator for each layer of the pair."""
        loss = am.VariationalLoss(estimators=self.recipe(estimator))
        return am.SVI(program.model, program.guide, loss, **options)

    def following(self, train: torch.Tensor) -> torch.Tensor:
        """The training images on which the ELBO is followed: the same for all."""
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        return train[order[: self.subset]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Folder:
    """Where the files of a benchmark are."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    def run(self, estimator: str, seed: int) -> Path:
        return self.path / "runs" / f"{estimator}-{seed}.json"

    def trial(self, lr: float) -> Path:
        return self.path / "trials" / f"{lr:g}.json"

    def variance(self, estimator: str) -> Path:
        return self.path / "variance" / f"{estimator}.json"


def read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if it is not there or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Replaces the file as a whole, so that it is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(fresh, path)
