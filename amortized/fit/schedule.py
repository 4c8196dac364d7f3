"""What changes in the course of training: the weight of the KL, and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, final

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from amortized.errors import UsageError

SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
Interval = Literal["epoch", "step"]
INTERVALS: Final = ("epoch", "step")


@final
class KLWeight:
    """The weight of the KL at a moment of training.

    Args:
        weight: a number, or a function of the step (from 0).
        warmup: over so many epochs the weight grows linearly from 0; a fraction of an epoch counts
            where the number of batches is known.

    Raises:
        UsageError: a weight below 0 or not finite, or a warm-up below 1.

    >>> ramp = KLWeight(1.0, warmup=2)
    >>> [ramp(step=step, epochs=step / 4) for step in (0, 2, 4, 8, 12)]
    [0.0, 0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, weight: float | Callable[[int], float], warmup: int | None = None) -> None:
        if not callable(weight):
            _refuse_bad_weight(weight, "")
        if warmup is not None and warmup < 1:
            raise UsageError(f"n_epochs_kl_warmup={warmup}: expected at least 1, or None")
        self.weight, self.warmup = weight, warmup

    def __call__(self, *, step: int, epochs: float) -> float:
        """The weight at a step, after so many epochs."""
        weight = self.weight
        if callable(weight):
            weight = _refuse_bad_weight(weight(step), f" at step {step}")
        return weight if self.warmup is None else weight * min(1.0, epochs / self.warmup)

    def __repr__(self) -> str:
        """What was asked for."""
        return f"KLWeight({self.weight!r}, warmup={self.warmup!r})"


def _refuse_bad_weight(weight: Any, where: str) -> float:
    if not isinstance(weight, int | float) or not (math.isfinite(weight) and weight >= 0):
        raise UsageError(f"kl_weight={weight!r}{where}: expected a number of at least 0")
    return float(weight)


@final
class LearningRateSchedule:
    """A torch scheduler, stepped once an epoch or once a step.

    Args:
        factory: called with the torch optimizer when it exists.
        interval: ``"epoch"`` or ``"step"``.

    Raises:
        UsageError: no factory, or another interval.
    """

    def __init__(self, factory: SchedulerFactory, interval: Interval = "epoch") -> None:
        if isinstance(factory, LRScheduler) or not callable(factory):
            raise UsageError(
                f"scheduler={type(factory).__name__}(...): expected a callable on the optimizer, "
                "such as functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)"
            )
        if interval not in INTERVALS:
            raise UsageError(f"scheduler_interval={interval!r}: expected 'epoch' or 'step'")
        self.factory, self.interval = factory, interval
        self._scheduler: LRScheduler | None = None

    @property
    def attached(self) -> bool:
        """Whether the scheduler is built."""
        return self._scheduler is not None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Builds the scheduler, once."""
        if self._scheduler is not None:
            return
        built = self.factory(optimizer)
        if not isinstance(built, LRScheduler):
            raise UsageError(
                f"scheduler made a {type(built).__name__}: expected a torch.optim.lr_scheduler"
            )
        if isinstance(built, ReduceLROnPlateau) and self.interval == "step":
            raise UsageError(
                "ReduceLROnPlateau watches the validation loss: use scheduler_interval='epoch'"
            )
        self._scheduler = built

    def after_step(self) -> None:
        """An optimizer step was taken."""
        if self.interval == "step" and self._scheduler is not None:
            self._scheduler.step()

    def after_epoch(self, metrics: dict[str, float]) -> None:
        """An epoch ended with these metrics.

        Raises:
            UsageError: a scheduler that watches the loss and no finite loss to watch.
        """
        if self.interval != "epoch" or self._scheduler is None:
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()
            return
        watched = metrics.get("val_loss", metrics.get("train_loss", math.nan))
        if math.isfinite(watched):  # an epoch without validation says nothing
            self._scheduler.step(watched)

    def scale(self, factor: float) -> None:
        """Scales what the scheduler multiplies, after the optimizer's rates were scaled."""
        scheduler = self._scheduler
        if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
            return
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state; empty before the first step."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back, into a scheduler that is attached."""
        if self._scheduler is not None and state:
            self._scheduler.load_state_dict(state)


def schedule_of(
    factory: SchedulerFactory | None, interval: Interval
) -> LearningRateSchedule | None:
    """A schedule for a factory; None for none."""
    return None if factory is None else LearningRateSchedule(factory, interval)
