"""Epochs: training, validation, callbacks, and every way in which they end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch

from amortized.errors import NonFiniteError, UsageError
from amortized.fit.callbacks import Callback, EarlyStopping, FitState
from amortized.fit.data import Batches, batch_length
from amortized.fit.history import History
from amortized.fit.progress import Reporter, reporter
from amortized.fit.rng import fresh_seed, seeded
from amortized.fit.step import Averager, Stepper
from amortized.programs.records import DataPlate


@dataclass(frozen=True)
class Plan:
    """What a call of ``fit`` is to do.

    Raises:
        UsageError: no end in sight, or one before the first step.
    """

    train: Batches
    val: Batches | None
    data: DataPlate
    max_epochs: int | None
    max_steps: int | None
    callbacks: list[Callback]
    progress: bool

    def __post_init__(self) -> None:
        ends = {"max_epochs": self.max_epochs, "max_steps": self.max_steps}
        for name, value in ends.items():
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")
        stops_early = any(isinstance(callback, EarlyStopping) for callback in self.callbacks)
        if self.max_epochs is None and self.max_steps is None and not stops_early:
            raise UsageError(
                "fit has no end: pass max_epochs=..., max_steps=..., or am.EarlyStopping(...) "
                "among the callbacks"
            )

    @property
    def steps(self) -> int | None:
        """The number of steps at most, where it is known."""
        batches = self.train.num_batches
        known = [] if self.max_steps is None else [self.max_steps]
        if batches is not None and self.max_epochs is not None:
            known.append(batches * self.max_epochs)
        return min(known, default=None)


@final
class Loop:
    """One call of ``fit``."""

    def __init__(self, stepper: Stepper, plan: Plan) -> None:
        self.stepper, self.plan = stepper, plan
        self.history = History(plan.max_epochs)
        self.state = FitState(stepper.parameters, self.history)
        self._shuffle = torch.Generator()
        self._val_seed = 0

    def run(self) -> History:
        """Trains to the end of the plan, to a callback's stop, or to Ctrl-C."""
        self._shuffle.manual_seed(fresh_seed())
        self._val_seed = fresh_seed()
        report = reporter(self.plan.progress, self.plan.max_epochs, self.plan.steps)
        try:
            with self._failures():
                self._call("on_fit_start")
                while not self._finished():
                    self._epoch(report)
            self._call("on_fit_end")
        finally:
            report.close(self.history)
        return self.history

    def _finished(self) -> bool:
        state, plan = self.state, self.plan
        if state.stop is not None:
            self.history.stopped = state.stop
            return True
        return _reached(state.epoch, plan.max_epochs) or _reached(state.step, plan.max_steps)

    def _epoch(self, report: Reporter) -> None:
        self.state.epoch += 1
        self._call("on_train_epoch_start")
        started, averager = time.perf_counter(), Averager()
        try:
            self._train(averager, report)
        except KeyboardInterrupt:
            if averager.weight:
                self._record(averager, {}, started)
            raise
        validation = self._validate()
        self._record(averager, validation, started)
        report.epoch(self.history)
        self._call("on_train_epoch_end")

    def _train(self, averager: Averager, report: Reporter) -> None:
        for batch in self.plan.train.epoch(self._shuffle):
            averager.add(self._step(batch), batch_length(batch))
            self.state.step += 1
            self._call("on_train_batch_end")
            report.batch(self.state.epoch, batch_length(batch))
            if _reached(self.state.step, self.plan.max_steps):
                return

    def _validate(self) -> dict[str, float]:
        if self.plan.val is None:
            return {}
        averager = Averager()
        # The same noise at every epoch: differences between epochs are then the parameters' alone,
        # and the training stream does not move.
        with seeded(self._val_seed):
            for batch in self.plan.val.epoch():
                averager.add(self.stepper.terms(batch, self.plan.data), batch_length(batch))
        self._call("on_validation_epoch_end")
        means = averager.means()
        return {f"val_{name}": means[name] for name in ("loss", "elbo", "reconstruction", "kl")}

    def _record(self, averager: Averager, validation: dict[str, float], started: float) -> None:
        means = averager.means()
        train = {"train_loss": means.pop("loss"), "train_elbo": means.pop("elbo")}
        self.history.per_datum = averager.per_datum
        elapsed = time.perf_counter() - started
        self.history.record({**train, **means, **validation, "epoch_time": elapsed})

    def _step(self, batch: Any) -> Any:
        try:
            return self.stepper.step(batch, self.plan.data)
        except NonFiniteError as error:
            raise NonFiniteError(f"epoch {self.state.epoch}, {error}") from error

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Ctrl-C ends training and keeps what was learned; errors go on after the callbacks."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            self.history.stopped = "interrupted"
            self._call("on_exception", interrupt)
        except Exception as error:
            self._call("on_exception", error)
            raise

    def _call(self, hook: str, *args: BaseException) -> None:
        for callback in self.plan.callbacks:
            getattr(callback, hook)(self.state, *args)


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit
