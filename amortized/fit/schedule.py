"""What changes in the course of training: the weight of the KL, and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Final, Literal, final

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from amortized.errors import CheckpointError, UsageError
from amortized.fit.arguments import refuse_no_count, refuse_uncallable

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
        if callable(weight):
            refuse_uncallable("kl_weight", weight, "the number of the step")
        else:
            weight = _refuse_bad_weight(weight, "")
        refuse_no_count("n_epochs_kl_warmup", warmup, or_none=True)
        self.weight, self.warmup = weight, warmup

    @property
    def constant(self) -> bool:
        """Whether it never changes."""
        return self.warmup is None and not callable(self.weight)

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
    if not isinstance(weight, Real) or not (math.isfinite(weight) and float(weight) >= 0):
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
        self._factor = 1.0

    @property
    def attached(self) -> bool:
        """Whether the scheduler is built."""
        return self._scheduler is not None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Builds the scheduler, once.

        Raises:
            UsageError: the factory fails, or makes something else.
        """
        if self._scheduler is not None:
            return
        for group in optimizer.param_groups:  # an earlier schedule's, which torch would go back to
            group.pop("initial_lr", None)
        try:
            built = self.factory(optimizer)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"scheduler: it cannot be made of an optimizer alone: {error}; give its other "
                "arguments with functools.partial(...)"
            ) from error
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
        if self.interval == "step":
            self._move()

    def after_epoch(self, watched: float) -> None:
        """An epoch ended with this loss; NaN: it was not looked at."""
        if self.interval != "epoch":
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._move()
        elif math.isfinite(watched):
            self._move(watched)

    def scale(self, factor: float) -> None:
        """Scales all rates to come; those of now are the caller's to scale."""
        self._factor *= factor

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state; empty before the first step."""
        if self._scheduler is None:
            return {}
        kind, state = type(self._scheduler).__name__, self._scheduler.state_dict()
        return {"kind": kind, "factor": self._factor, "state": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back, into a scheduler that is attached.

        Raises:
            CheckpointError: the state is another kind of scheduler's.
        """
        if self._scheduler is None or not state:
            return
        if state["kind"] != (kind := type(self._scheduler).__name__):
            raise CheckpointError(
                f"the file holds the state of {state['kind']}, and this is a {kind}: pass the "
                "scheduler it was written with"
            )
        self._factor = state["factor"]
        self._scheduler.load_state_dict(state["state"])

    def _move(self, *watched: float) -> None:
        """Moves the scheduler, which does not know of the factor.

        Raises:
            UsageError: the scheduler has no more steps.
        """
        if self._scheduler is None:
            return
        self._scale_rates(1 / self._factor)
        try:
            scheduler: Any = self._scheduler  # one that watches a number is stepped with it
            scheduler.step(*watched)
        except ValueError as error:
            raise UsageError(
                f"scheduler: {type(self._scheduler).__name__} cannot move on: {error}; make it "
                "longer, or training shorter"
            ) from error
        finally:
            self._scale_rates(self._factor)

    def _scale_rates(self, factor: float) -> None:
        if self._scheduler is not None and factor != 1.0:
            for group in self._scheduler.optimizer.param_groups:
                group["lr"] = group["lr"] * factor


def schedule_of(
    factory: SchedulerFactory | None, interval: Interval
) -> LearningRateSchedule | None:
    """A schedule for a factory; None for none."""
    return None if factory is None else LearningRateSchedule(factory, interval)
