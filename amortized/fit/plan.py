"""What a call of ``fit`` is to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from amortized.errors import UsageError
from amortized.fit.arguments import refuse_no_count, refuse_no_number
from amortized.fit.callbacks import Callback, EarlyStopping, FitState, as_callbacks
from amortized.fit.data import Batches
from amortized.fit.loggers import LogEachEpoch, Logger, as_loggers
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.recovery import Policy
from amortized.fit.schedule import KLWeight, LearningRateSchedule
from amortized.programs.records import DataPlate

# what a trial run leaves out: it should neither end early nor write anything
_NOT_ON_TRIAL = (EarlyStopping, ModelCheckpoint, LogEachEpoch)


@dataclass(frozen=True)
class Plan:
    """The data, the options and the callbacks of one call.

    Raises:
        UsageError: no end in sight, or an option out of range.
    """

    train: Batches
    val: Batches | None
    data: DataPlate
    max_epochs: int | None
    max_steps: int | None
    callbacks: list[Callback]
    progress: bool
    kl_weight: KLWeight = field(default_factory=lambda: KLWeight(1.0))
    schedule: LearningRateSchedule | None = None
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    check_val_every_n_epoch: int = 1
    detect_anomaly: bool = False
    non_finite: Policy = "raise"
    non_finite_limit: int = 10
    resume_from: Path | None = None
    check: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {
            "max_epochs": self.max_epochs,
            "max_steps": self.max_steps,
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "check_val_every_n_epoch": self.check_val_every_n_epoch,
        }
        for name, value in counts.items():
            if value is not None and not _is_whole(value):
                raise UsageError(f"{name}={value!r}: expected a whole number, at least 1")
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")
        refuse_no_count("data_plate's size", self.data.size, or_none=True)
        # a wrong limit is named now, not after the first epoch
        _ = self.train_batches, self.val_batches
        clip = self.gradient_clip_val
        if clip is not None:
            refuse_no_number("gradient_clip_val", clip, "a norm above 0, or None")
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise UsageError(f"gradient_clip_val={clip}: expected a norm above 0, or None")
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.refuse_unknown_monitor(self.val is not None)
                if callback.monitor == "train_loss" and not self.kl_weight.constant:
                    raise UsageError(
                        "EarlyStopping watches 'train_loss', which carries the weight of the KL, "
                        "and that grows: watch 'val_loss', or 'train_elbo' with mode='max'"
                    )
            if isinstance(callback, ModelCheckpoint):
                callback.refuse_unknown_monitor(self.callbacks)
        folders = [c.dirpath.resolve() for c in self.callbacks if isinstance(c, ModelCheckpoint)]
        if len(set(folders)) < len(folders):
            raise UsageError(
                f"two ModelCheckpoints write below {folders[0]}, and each would delete what the "
                "other keeps: give each a folder of its own"
            )
        stops_early = any(isinstance(callback, EarlyStopping) for callback in self.callbacks)
        if self.max_epochs is None and self.max_steps is None and not stops_early:
            raise UsageError(
                "fit has no end: pass max_epochs=..., max_steps=..., or am.EarlyStopping(...) "
                "among the callbacks"
            )

    @property
    def train_batches(self) -> int | None:
        """Batches in one epoch, limits counted in; None where nobody knows."""
        return limited(self.train.num_batches, self.limit_train_batches, "limit_train_batches")

    @property
    def val_batches(self) -> int | None:
        """Batches of one validation; None: all there are."""
        if self.val is None:
            return None
        return limited(self.val.num_batches, self.limit_val_batches, "limit_val_batches")

    @property
    def steps(self) -> int | None:
        """The number of optimizer steps at most, where it is known."""
        batches = self.train_batches
        known = [] if self.max_steps is None else [self.max_steps]
        if batches is not None and self.max_epochs is not None:
            known.append(-(-batches // self.accumulate_grad_batches) * self.max_epochs)
        return min(known, default=None)

    def to_come(self, step: int) -> int | None:
        """Batches after so many steps, where their number is known."""
        left = None if self.steps is None else self.steps - step
        return None if left is None else left * self.accumulate_grad_batches

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to be resumed in the middle of an epoch."""
        return {
            "data points": self.train.size,
            "rows a batch": self.train.rows_asked(),
            "batches": self.train_batches,
            "learning-rate schedules": int(self.schedule is not None),
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "generators of its own": len(self.train.generators()),
        }


def _is_whole(value: Any) -> bool:
    """Whether it counts something; 1e5 does, 2.5 would be rounded up in silence."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()


def limited(total: int | None, limit: int | float | None, name: str) -> int | None:
    """A number of batches under a limit: a count, or a fraction of all.

    Raises:
        UsageError: a limit out of range, or a fraction of an unknown number.

    >>> limited(10, 3, "limit"), limited(10, 0.25, "limit"), limited(None, None, "limit")
    (3, 2, None)
    """
    if limit is None:
        return total
    refuse_no_number(name, limit, "a count from 1, or a fraction up to 1.0")
    fraction = not isinstance(limit, Integral)  # numpy's numbers are of either kind too
    if not limit > 0 or (fraction and limit > 1):
        raise UsageError(f"{name}={limit}: expected a count from 1, or a fraction up to 1.0")
    if not fraction:
        return int(limit) if total is None else min(int(limit), total)
    if total is None:
        raise UsageError(f"{name}={limit}: the data do not say how many batches there are")
    return max(1, int(total * limit))


def on_trial(
    callbacks: Iterable[Callback], limits: dict[str, Any], batches: bool | int
) -> tuple[list[Callback], dict[str, Any]]:
    """Callbacks and limits of a ``fast_dev_run``: a few batches of one epoch, nothing written.

    Raises:
        UsageError: fewer than one batch.
    """
    whole = isinstance(batches, bool | Integral)
    if not whole or batches < 1:
        raise UsageError(f"fast_dev_run={batches!r}: expected True or a number of batches")
    count = int(batches)
    kept = [callback for callback in callbacks if not isinstance(callback, _NOT_ON_TRIAL)]
    trial = {"max_epochs": 1, "limit_train_batches": count, "limit_val_batches": count}
    return kept, {**limits, **trial}


def in_order(
    callbacks: Iterable[Callback | Callable[[FitState], Any]],
    logger: Logger | Iterable[Logger] | None,
) -> list[Callback]:
    """All callbacks; those that write checkpoints come last, when the others' state has moved."""
    found = [*as_callbacks(callbacks), *as_loggers(logger)]
    return sorted(found, key=lambda callback: isinstance(callback, ModelCheckpoint))
