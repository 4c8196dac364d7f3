"""What training recorded, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from amortized.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
class History(dict[str, list[float]]):
    """One list of Python floats a key, one entry an epoch: nats per data point.

    Keys: ``train_loss`` (minimized), ``train_elbo``, its terms ``reconstruction`` and ``kl``, one
    ``kl/<site>`` a latent site, with validation data ``val_loss``, ``val_elbo``,
    ``val_reconstruction`` and ``val_kl``; ``grad_norm`` (the mean over steps), ``lr`` (or one
    ``lr/<group>`` each), ``kl_weight`` where it is not always 1, ``skipped_steps`` and
    ``rollbacks`` where there were any, and ``epoch_time`` in seconds. The loss carries the weight
    of the KL, the bound and its terms do not. An epoch without an entry holds NaN.

    Attributes:
        max_epochs: the number asked for, or None.
        stopped: why training ended before that, or None.
        per_datum: False for a program without a data plate, where the numbers are totals.
        notices: what is worth a look, one sentence each: a latent that the model ignores, say.

    >>> history = History(max_epochs=10)
    >>> history.record({"train_loss": 2.5})
    >>> history.record({"train_loss": 1.5, "val_elbo": -1.75})
    >>> history["val_elbo"], history
    ([nan, -1.75], History(epochs=2/10, train_loss=1.50, val_elbo=-1.75))
    """

    def __init__(self, max_epochs: int | None = None) -> None:
        super().__init__()
        self.max_epochs = max_epochs
        self.stopped: str | None = None
        self.per_datum = True
        self.notices: list[str] = []
        self._epochs = 0

    @property
    def epochs(self) -> int:
        """The number of epochs recorded."""
        return self._epochs

    @property
    def train_seconds(self) -> float:
        """Seconds of training and validation in all epochs, also those before a resume."""
        return sum(self.get("epoch_time", ()))

    def record(self, metrics: dict[str, float]) -> None:
        """Appends the metrics of one epoch; keys may come and go."""
        for name in metrics:
            self.setdefault(name, [math.nan] * self._epochs)
        for name, values in self.items():
            values.append(float(metrics.get(name, math.nan)))
        self._epochs += 1

    def last(self) -> dict[str, float]:
        """The metrics of the newest epoch; empty before the first."""
        return {name: values[-1] for name, values in self.items()} if self._epochs else {}

    def rows(self) -> list[dict[str, float]]:
        """One dict an epoch, with its number (from 1) as ``epoch``."""
        epochs = range(self._epochs)
        return [{"epoch": i + 1, **{k: v[i] for k, v in self.items()}} for i in epochs]

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as numbers, strings and lists."""
        about = {"epochs": self._epochs, "stopped": self.stopped, "per_datum": self.per_datum}
        values = {name: list(of) for name, of in self.items()}
        return {**about, "notices": list(self.notices), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes what a `state_dict` recorded."""
        self.clear()
        self.update({name: list(of) for name, of in state["values"].items()})
        self._epochs, self.per_datum = state["epochs"], state["per_datum"]
        self.notices = list(state["notices"])

    def csv(self) -> str:
        """`rows` as CSV; an epoch without an entry leaves its cell empty."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["epoch", *self], lineterminator="\n")
        writer.writeheader()
        for row in self.rows():
            writer.writerow({k: "" if math.isnan(v) else v for k, v in row.items()})
        return text.getvalue()

    def write_csv(self, path: str | Path) -> None:
        """Writes `csv` to a file."""
        Path(path).write_text(self.csv(), encoding="utf-8")

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row an epoch.

        Raises:
            UsageError: pandas is not installed.
        """
        # pandas is optional, and slow to import.
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("History.to_frame needs pandas: pip install pandas") from error
        epochs = pandas.RangeIndex(1, self._epochs + 1, name="epoch")
        return pandas.DataFrame(dict(self), index=epochs)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bound of training and validation data against epochs; returns the axes."""
        # matplotlib is slow to import, and training does not need it.
        from amortized.plots import training_curves

        return training_curves(self, ax, per_datum=self.per_datum)

    def __repr__(self) -> str:
        """One line with what matters."""
        total = "" if self.max_epochs is None else f"/{self.max_epochs}"
        shown = [f"epochs={self._epochs}{total}"]
        if self.stopped is not None:
            shown.append(self.stopped)
        last = {key: value for key, value in self.last().items() if not math.isnan(value)}
        shown += [f"{key}={last[key]:.2f}" for key in ("train_loss", "val_elbo") if key in last]
        return f"History({', '.join(shown)})"
