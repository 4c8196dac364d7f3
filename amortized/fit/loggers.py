"""Where metrics go besides the history: any object that logs, and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from amortized.errors import UsageError
from amortized.fit.callbacks import Callback, FitState


@runtime_checkable
class Logger(Protocol):
    """Anything that takes a dict of numbers and a step: a run of a tracker, say."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> Any:
        """Takes the metrics of one epoch."""
        ...


@final
class TensorBoard:
    """Writes metrics as TensorBoard scalars, one event file a training.

    Args:
        folder: where event files go; made at the first epoch.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            # optional, and slow to import
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UsageError("am.TensorBoard needs tensorboard: pip install tensorboard") from error
        self.folder = Path(folder)
        self._make = SummaryWriter
        self._writer: Any = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes one point for each metric."""
        if self._writer is None:
            self._writer = self._make(str(self.folder))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __repr__(self) -> str:
        """Where it writes."""
        return f"TensorBoard({str(self.folder)!r})"


@final
class LogEachEpoch(Callback):
    """Hands the finite metrics of each epoch to a logger, at the step that ended it."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def on_train_epoch_end(self, state: FitState) -> None:
        """Logs."""
        last = state.history.last()
        finite = {name: value for name, value in last.items() if math.isfinite(value)}
        self.logger.log_metrics(finite, state.step)


def as_loggers(given: Logger | Iterable[Logger] | None) -> list[LogEachEpoch]:
    """Callbacks for one logger, several or none.

    Raises:
        UsageError: something that does not log.
    """
    if given is None:
        return []
    loggers = [given] if isinstance(given, Logger) or not isinstance(given, Iterable) else [*given]
    for logger in loggers:
        # a class has the method too, and nobody to call it on
        if not isinstance(logger, Logger) or isinstance(logger, type):
            raise UsageError(
                f"logger: found {_kind(logger)}; expected an object with a method "
                "log_metrics(metrics, step), such as am.TensorBoard('runs')"
            )
    return [LogEachEpoch(logger) for logger in loggers]


def _kind(logger: object) -> str:
    return f"the class {logger.__name__}" if isinstance(logger, type) else type(logger).__name__
