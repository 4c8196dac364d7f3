"""Trainings that go wrong on purpose, for the tests of the harness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import amortized as am
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.distributed import Group
from tests.fit import tiny

SIZE, BATCH = 40, 8  # five batches an epoch


def pair(**options: Any) -> am.SVI:
    """A new pair whose parameters live in the store."""
    return am.SVI(tiny.local_model, tiny.param_guide, **options)


def fit(svi: am.SVI, train: Any = None, val: Any = None, **options: Any) -> am.History:
    """Trains in silence and without checks, five batches an epoch."""
    train = tiny.data(SIZE) if train is None else train
    options = {"batch_size": BATCH, "progress": False, "check": False, **options}
    return svi.fit(train, val, **options)


def doubled(group: Group, tensor: Tensor) -> None:
    """A sum with another process that brings the same; each has a slot for how it fares."""
    tensor.mul_(2)
    tensor[2 + group.rank] /= 2


class Do(Callback):
    """Calls a function with the state after certain steps, or before, after or in each epoch."""

    def __init__(self, function: Callable[[FitState], Any], *steps: int, hook: str = "") -> None:
        self.function, self.steps, self.hook = function, steps, hook

    def on_train_batch_end(self, state: FitState) -> None:
        if state.step in self.steps:
            self.function(state)

    def on_train_epoch_start(self, state: FitState) -> None:
        self._on("train_epoch_start", state)

    def on_train_epoch_end(self, state: FitState) -> None:
        self._on("train_epoch_end", state)

    def on_validation_epoch_end(self, state: FitState) -> None:
        self._on("validation_epoch_end", state)

    def on_fit_end(self, state: FitState) -> None:
        self._on("fit_end", state)

    def _on(self, hook: str, state: FitState) -> None:
        if self.hook == hook:
            self.function(state)


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop(state: FitState) -> None:
    """Ends training without ceremony."""
    raise Stop


def poison(state: FitState) -> None:
    """Makes a parameter of `pair` NaN."""
    with torch.no_grad():
        state.parameters.tensors()["store.slope"].fill_(math.nan)


def in_order(*bad: int, data: Tensor | None = None, value: float = math.nan) -> DataLoader[Any]:
    """Batches in order, some of them (from 0) without one finite number."""
    x = (tiny.data(SIZE) if data is None else data).clone()
    for number in bad:
        x[number * BATCH : (number + 1) * BATCH] = value
    return DataLoader(TensorDataset(x), BATCH)


class Stream(IterableDataset[Tensor]):
    """Rows of a tensor, of which nobody knows how many there are."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


class Recorded:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.seen.append((dict(metrics), step))
