"""What can be hooked into training: callbacks, and early stopping."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, final

from amortized.errors import UsageError
from amortized.fit.arguments import (
    known_names,
    refuse_no_count,
    refuse_no_number,
    refuse_uncallable,
)
from amortized.fit.history import History
from amortized.fit.parameters import Parameters


def _called(function: Callable[[], Any]) -> Any:
    return function()


@dataclass
class FitState:
    """What a callback sees and may change.

    ``epoch`` and ``step`` count from 1 within this call of ``fit``, ``batch`` within the epoch; a
    training that was resumed goes on counting. ``steps_before`` are the steps of earlier calls.
    Setting ``stop`` to a short reason ends training after the epoch. ``whole`` is False while a
    step is under way: nothing should be saved then.
    """

    parameters: Parameters
    history: History
    epoch: int = 0
    step: int = 0
    steps_before: int = 0
    batch: int = 0
    stop: str | None = None
    whole: bool = True
    training: str = ""
    """Names this training, however often it is resumed or ``fit`` is called again."""
    resumed_from: Path | None = None
    save: Callable[[Path], Path] | None = None
    """Writes a checkpoint below a folder and returns its path; in any hook. Where processes train
    together all must call it: the first one writes."""
    once: Callable[[Callable[[], Any]], Any] = _called
    """Calls a function and returns what it gives; of processes that train together the first one
    calls it, for all, and all must ask for that."""


VALIDATION: Final = ("val_loss", "val_elbo", "val_reconstruction", "val_kl")
"""What is recorded with validation data."""
KNOWN: Final = (
    *VALIDATION,
    *("train_loss", "train_elbo", "reconstruction", "kl", "grad_norm", "lr"),
    *("kl_weight", "skipped_steps", "rollbacks", "epoch_time"),
)
"""What training records by itself, and one ``kl/<site>`` and ``lr/<group>`` each."""
EARLY: Final = "early stopped"


class Callback(ABC):  # noqa: B024 - all hooks are optional
    """Hooks of a call of ``fit``; each does nothing unless overridden."""

    def on_fit_start(self, state: FitState) -> None:  # noqa: B027
        """Before the first step."""

    def on_train_epoch_start(self, state: FitState) -> None:  # noqa: B027
        """Before the first batch of an epoch."""

    def on_train_batch_end(self, state: FitState) -> None:  # noqa: B027
        """After each optimizer step."""

    def on_validation_epoch_end(self, state: FitState) -> None:  # noqa: B027
        """After each pass over the validation data, before it is recorded."""

    def on_train_epoch_end(self, state: FitState) -> None:  # noqa: B027
        """After each epoch, validation included: ``state.history`` has it."""

    def on_exception(self, state: FitState, error: BaseException) -> None:  # noqa: B027
        """An error, or Ctrl-C, ended training."""

    def on_fit_end(self, state: FitState) -> None:  # noqa: B027
        """After the last step, also of a training that Ctrl-C ended."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: tensors, numbers, strings, lists and dicts of those."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes that back, after ``on_fit_start``."""


@final
class EarlyStopping(Callback):
    """Ends training when a number has not improved for ``patience`` checks in a row.

    Args:
        monitor: a key of the history.
        patience: checks without improvement until the end; None: training goes on, and only its
            best parameters come back.
        min_delta: an improvement must be larger than this, in nats per data point.
        mode: ``"min"`` where smaller is better.
        restore_best: at the end, the parameters of the best check come back.

    Raises:
        UsageError: a bad argument, or a monitor that training does not record.

    >>> EarlyStopping(patience=3)
    EarlyStopping(monitor='val_loss', patience=3)
    """

    @known_names
    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int | None = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        *,
        restore_best: bool = True,
    ) -> None:
        refuse_no_count("patience", patience, or_none=True, of="EarlyStopping")
        refuse_no_number("min_delta", min_delta, of="EarlyStopping")
        if not isinstance(monitor, str):
            raise UsageError(f"EarlyStopping(monitor={monitor!r}): expected a key of the history")
        if mode not in ("min", "max"):
            raise UsageError(f"EarlyStopping(mode={mode!r}): expected 'min' or 'max'")
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.mode, self.restore_best = mode, restore_best
        self.best, self.best_epoch, self.waited = math.inf, 0, 0
        self._weights: dict[str, Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What it was asked for."""
        names = ("monitor", "patience", "min_delta", "mode", "restore_best")
        return {name: getattr(self, name) for name in names}

    @property
    def exhausted(self) -> bool:
        """Whether it has waited long enough."""
        return self.patience is not None and self.waited >= self.patience

    def on_fit_start(self, state: FitState) -> None:
        """Forgets an earlier training."""
        self.best, self.best_epoch, self.waited = math.inf, 0, 0
        self._weights = None

    def on_train_epoch_end(self, state: FitState) -> None:
        """Compares with the best so far."""
        value = state.history.last().get(self.monitor)
        if value is None:
            raise UsageError(self._missing(state.history))
        if math.isnan(value):  # an epoch without this check
            return
        value = value if self.mode == "min" else -value
        if value < self.best - self.min_delta:
            self.best, self.best_epoch, self.waited = value, state.epoch, 0
            self._weights = state.parameters.snapshot() if self.restore_best else None
            return
        self.waited += 1
        if self.exhausted:
            state.stop = EARLY

    def on_fit_end(self, state: FitState) -> None:
        """Brings the best parameters back, if asked."""
        if self._weights is not None and self.best_epoch < state.epoch:
            state.parameters.restore(self._weights)
            best = self.best if self.mode == "min" else -self.best
            state.history.notices.append(
                f"the parameters are those of epoch {self.best_epoch}, the best by {self.monitor} "
                f"({best:.4g})"
            )
        self._weights = None

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and its parameters."""
        watched = {"monitor": self.monitor, "mode": self.mode}
        counts = {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}
        return {**watched, **counts, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the best of a training that is resumed; by another monitor it has none."""
        watched = state.get("monitor", self.monitor), state.get("mode", self.mode)
        if watched != (self.monitor, self.mode):
            return
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.waited = state["waited"]
        self._weights = state["weights"] if self.restore_best else None

    def refuse_unknown_monitor(self, validates: bool) -> None:
        """Before training, as far as that can be known: sites are met later.

        Raises:
            UsageError: a monitor that training will not record.
        """
        if self.monitor in VALIDATION and not validates:
            raise UsageError(
                f"EarlyStopping watches {self.monitor!r}, but fit was given no validation data: "
                "pass val=..., or watch monitor='train_loss'"
            )
        refuse_unknown_monitor("EarlyStopping", self.monitor)

    def _missing(self, history: History) -> str:
        return f"EarlyStopping watches {self.monitor!r}; recorded are {', '.join(sorted(history))}"

    def __repr__(self) -> str:
        """One line."""
        return f"EarlyStopping(monitor={self.monitor!r}, patience={self.patience})"


@final
class EachEpoch(Callback):
    """A plain callable, called with the state after each epoch."""

    def __init__(self, function: Callable[[FitState], Any]) -> None:
        self.function = function

    def on_train_epoch_end(self, state: FitState) -> None:
        """Calls it."""
        self.function(state)


def refuse_unknown_monitor(who: str, monitor: str) -> None:
    """Sites are met later, and each has a key of its own.

    Raises:
        UsageError: no key that training records.
    """
    if monitor in KNOWN or monitor.startswith(("kl/", "lr/")):
        return
    close = get_close_matches(monitor, KNOWN, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"{who} watches {monitor!r}; recorded are {', '.join(KNOWN)} and kl/<site>{hint}"
    )


def numbered(callbacks: Iterable[Callback]) -> list[tuple[str, Callback]]:
    """Callbacks by class and number, so that another order or a new one does no harm."""
    counts: dict[str, int] = {}
    named = []
    for callback in callbacks:
        kind = type(callback).__name__
        counts[kind] = counts.get(kind, 0) + 1
        named.append((f"{kind}{counts[kind]}", callback))
    return named


def as_callbacks(callbacks: Iterable[Callback | Callable[[FitState], Any]]) -> list[Callback]:
    """Callbacks as they are, other callables once an epoch.

    Raises:
        UsageError: something that is neither.
    """
    if isinstance(callbacks, Callback) or callable(callbacks):
        raise UsageError(f"callbacks: found {callbacks!r} alone; expected a list, [{callbacks!r}]")
    if not isinstance(callbacks, Iterable):
        raise UsageError(f"callbacks={callbacks!r}: expected a list of callbacks, or ()")
    found: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, Callback):
            found.append(callback)
        elif callable(callback) and not isinstance(callback, type):
            refuse_uncallable("callbacks", callback, "the state of training")
            found.append(EachEpoch(callback))
        else:
            raise UsageError(
                f"callbacks: found {callback!r}; expected am.EarlyStopping(...) and the like, or a "
                "function that is called with the state after each epoch"
            )
    return found
