"""The progress line: live in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from amortized.fit.history import History

# Seconds between two redraws of the live line, and between two plain lines.
_REDRAW = 0.1
_PLAIN = 10.0
# Seconds from which on a rate says something.
_MEASURABLE = 0.1

# Both losses are minimized and show the same objective; what it weighs less is told beside them.
_SHOWN = ("train_loss", "val_loss", "kl", "kl_weight")


class Reporter(ABC):
    """Shows how training goes."""

    @abstractmethod
    def batch(self, epoch: int, rows: int, step: int) -> None:
        """A batch of ``rows`` data points was used; ``step`` optimizer steps were taken so far."""

    @abstractmethod
    def epoch(self, history: History) -> None:
        """An epoch was recorded."""

    @abstractmethod
    def close(self, history: History) -> None:
        """Training ended."""


@final
class Silent(Reporter):
    """Shows nothing."""

    def batch(self, epoch: int, rows: int, step: int) -> None:
        """Nothing."""

    def epoch(self, history: History) -> None:
        """Nothing."""

    def close(self, history: History) -> None:
        """Nothing."""


@final
class Plain(Reporter):
    """One plain line for the first epoch, then one every ten seconds, and one for the last."""

    def __init__(self, console: Console, total: str) -> None:
        self.console = console
        self.total = total
        self._speed = _Speed()
        self._printed_at, self._printed_epoch = 0.0, 0

    def batch(self, epoch: int, rows: int, step: int) -> None:
        """Counts."""
        self._speed.add(rows)

    def epoch(self, history: History) -> None:
        """Prints when it is time."""
        if history.epochs == 1 or time.monotonic() - self._printed_at > _PLAIN:
            self._print(history)

    def close(self, history: History) -> None:
        """Prints the last epoch."""
        if history.epochs > self._printed_epoch:
            self._print(history)

    def _print(self, history: History) -> None:
        text = f"epoch {history.epochs}{self.total}  {summary(history.last(), self._speed())}"
        self.console.print(text, highlight=False, soft_wrap=True)
        self._printed_at, self._printed_epoch = time.monotonic(), history.epochs


@final
class Live(Reporter):
    """One line that is redrawn in place."""

    def __init__(self, console: Console, total: str, steps: int | None, done: int = 0) -> None:
        self.total = total
        self._speed = _Speed()
        # Redrawn by us: a refreshing thread would compete with training for the cores.
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[summary]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            auto_refresh=False,
        )
        self._task: TaskID = self._progress.add_task(
            "", total=steps, completed=done, epoch="1" + total, summary=""
        )
        self._metrics: dict[str, float] = {}
        self._drawn_at = 0.0
        self._progress.start()

    def batch(self, epoch: int, rows: int, step: int) -> None:
        """Advances the bar."""
        self._speed.add(rows)
        self._progress.update(self._task, completed=step)
        now = time.monotonic()
        if now - self._drawn_at > _REDRAW:
            self._drawn_at = now
            self._draw(epoch)

    def epoch(self, history: History) -> None:
        """Takes the newest numbers."""
        self._metrics = history.last()

    def close(self, history: History) -> None:
        """Leaves the line as it is."""
        self._metrics = history.last()
        self._draw(max(1, history.epochs))
        self._progress.stop()

    def _draw(self, epoch: int) -> None:
        text = summary(self._metrics, self._speed())
        self._progress.update(self._task, epoch=f"{epoch}{self.total}", summary=text, refresh=True)


@final
class _Speed:
    """Data points a second from the end of one batch to that of another, mostly of recent ones.

    The first batch, in which networks and estimators are made, only starts the clock.
    """

    def __init__(self) -> None:
        self._rows, self._since, self._last = 0, -math.inf, -math.inf
        self._rate: float | None = None

    def add(self, rows: int) -> None:
        now = time.monotonic()
        if math.isinf(self._since):
            self._since = self._last = now
            return
        self._rows, self._last = self._rows + rows, now
        if now - self._since > 1.0:
            self._rate, self._rows, self._since = self._rows / (now - self._since), 0, now

    def __call__(self) -> float | None:
        """The rate of the batches since the last one that was a second apart, else that one.

        None while there is no interval that says anything.
        """
        elapsed = self._last - self._since
        return self._rows / elapsed if elapsed >= _MEASURABLE else self._rate


def reporter(progress: bool, max_epochs: int | None, steps: int | None, done: int = 0) -> Reporter:
    """The reporter that fits the terminal, with ``done`` of the steps behind it.

    It writes to standard error.
    """
    if not progress:
        return Silent()
    console = Console(stderr=True)
    total = "" if max_epochs is None else f"/{max_epochs}"
    return Live(console, total, steps, done) if console.is_terminal else Plain(console, total)


def summary(metrics: Mapping[str, float], speed: float | None) -> str:
    """The loss on training and on validation data, the KL and its weight, and the speed if known.

    The names are keys of the history, so that one knows what to look for there.

    >>> summary({"train_loss": 21.5, "val_elbo": -22.25, "val_loss": 22.25, "kl": 9.0}, 1234.5)
    'train_loss 21.50  val_loss 22.25  kl 9.00  1,234 rows/s'
    """
    shown = {key: metrics.get(key, math.nan) for key in _SHOWN}
    parts = [f"{key} {value:.2f}" for key, value in shown.items() if not math.isnan(value)]
    return "  ".join(parts if speed is None else [*parts, f"{speed:,.0f} rows/s"])
