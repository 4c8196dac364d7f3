"""Checkpoints while training: the newest ones to go on from, and the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, final

from amortized.errors import CheckpointError, NonFiniteError, UsageError
from amortized.fit.arguments import known_names, path_of, refuse_no_count
from amortized.fit.callbacks import (
    VALIDATION,
    Callback,
    EarlyStopping,
    FitState,
    refuse_unknown_monitor,
)
from amortized.fit.checkpoint import about, listed, prune
from amortized.fit.loggers import LogEachEpoch


@final
class ModelCheckpoint(Callback):
    """Writes checkpoints below a folder; ``fit(resume_from=folder)`` goes on from the newest.

    Each is written whole or not at all. A folder belongs to one training: what it was resumed from
    counts as its own, and what earlier calls of ``fit`` of the same `SVI` wrote. A damaged one that
    a resume passed over does not count as one of the newest; it goes when these are all newer.

    Args:
        dirpath: the folder, made at the start of training.
        monitor: a key of the history; the best checkpoints by it are kept.
        mode: ``"min"`` where smaller is better.
        save_top_k: so many of the best are kept.
        keep_last: so many of the newest are kept; with two, one is left if the other is damaged.
        every_n_epochs: epochs between two checkpoints.
        every_n_steps: optimizer steps between two, within epochs; None: only after epochs.
        save_on_exception: also when an interrupt or an error ends training.

    Attributes:
        last_path: the newest checkpoint.
        best_path: the best one by ``monitor``, or None.

    Raises:
        UsageError: an argument out of range, or a monitor that training does not record.
        CheckpointError: the folder cannot be written, or holds another training's checkpoints.

    >>> ModelCheckpoint("runs/vae", every_n_steps=500)
    ModelCheckpoint('runs/vae', monitor='val_loss')
    """

    @known_names
    def __init__(
        self,
        dirpath: str | Path,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        *,
        save_top_k: int = 1,
        keep_last: int = 2,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        save_on_exception: bool = True,
    ) -> None:
        refuse_no_count("save_top_k", save_top_k, 0, of="ModelCheckpoint")
        refuse_no_count("keep_last", keep_last, of="ModelCheckpoint")
        refuse_no_count("every_n_epochs", every_n_epochs, of="ModelCheckpoint")
        refuse_no_count("every_n_steps", every_n_steps, or_none=True, of="ModelCheckpoint")
        if mode not in ("min", "max"):
            raise UsageError(f"ModelCheckpoint(mode={mode!r}): expected 'min' or 'max'")
        self.dirpath = path_of("dirpath", dirpath, of="ModelCheckpoint")
        self.monitor, self.mode = monitor, mode
        self.save_top_k, self.keep_last = save_top_k, keep_last
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.save_on_exception = save_on_exception
        self.last_path: Path | None = None
        self._best: list[tuple[float, str]] = []
        self._saved_at = -1
        self._damaged: set[str] = set()

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint so far."""
        return self.dirpath / self._best[0][1] if self._best else None

    def on_fit_start(self, state: FitState) -> None:
        """Makes the folder, and refuses one that belongs to another training."""
        self._best, self._saved_at, self._damaged = [], -1, set()
        self._best, self._damaged = state.once(lambda: self._look(state))

    def _look(self, state: FitState) -> tuple[list[tuple[float, str]], set[str]]:
        """The best of what is in the folder, and what is damaged."""
        try:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            probe = self.dirpath / ".tmp-probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written below {self.dirpath}: {error.strerror or error}; "
                "make the folder writable, or name another"
            ) from error
        for path in self._later(state):
            if not _is_whole(path):  # perhaps the reason why an earlier one was resumed
                self._damaged.add(path.name)
        for path in reversed(listed(self.dirpath)):
            if path.name not in self._damaged:
                self._take_over(path, state)
        return sorted(self._best)[: self.save_top_k], self._damaged

    def on_train_batch_end(self, state: FitState) -> None:
        """Saves every so many steps."""
        if self.every_n_steps is not None and state.step % self.every_n_steps == 0:
            self._save(state)

    def on_train_epoch_end(self, state: FitState) -> None:
        """Saves every so many epochs, and remembers the best."""
        if state.epoch % self.every_n_epochs:
            return
        self._save(state, score=self._score(state.history.last()))

    def on_exception(self, state: FitState, error: BaseException) -> None:
        """Saves what was learned, unless an error caught a step half-done."""
        unsaved = self._saved_at != state.step
        sound = state.whole and not isinstance(error, CheckpointError | NonFiniteError)
        if self.save_on_exception and sound and unsaved and state.step > 0:
            self._save(state)

    def on_fit_end(self, state: FitState) -> None:
        """Says so if nothing could be the best."""
        known = self.monitor in state.history or self.monitor in VALIDATION
        if self.save_top_k and state.history.epochs and not known:
            state.history.notices.append(
                f"ModelCheckpoint watched {self.monitor!r}, which was not recorded: no checkpoint "
                f"is the best; recorded were {', '.join(sorted(state.history))}"
            )

    def refuse_unknown_monitor(self, callbacks: Iterable[Callback]) -> None:
        """Before training, unless a callback of the user's own may record it.

        Raises:
            UsageError: a monitor that training will not record.
        """
        ours = (ModelCheckpoint, EarlyStopping, LogEachEpoch)
        if self.save_top_k and all(isinstance(callback, ours) for callback in callbacks):
            refuse_unknown_monitor("ModelCheckpoint", self.monitor)

    def _score(self, metrics: Mapping[str, float]) -> float | None:
        """By which the best is the smallest; None where there is no number."""
        value = metrics.get(self.monitor, math.nan)
        return None if math.isnan(value) else value if self.mode == "min" else -value

    def _save(self, state: FitState, score: float | None = None) -> None:
        if state.save is None:
            return
        self.last_path = state.save(self.dirpath)
        self._saved_at = state.step
        if score is not None:
            ranked = sorted([*self._best, (score, self.last_path.name)])
            self._best = ranked[: self.save_top_k]
        state.once(self._prune)

    def _prune(self) -> None:
        best = {self.dirpath / name for _, name in self._best}
        if self.last_path is not None:
            prune(self.dirpath, {*self._newest(self.last_path), *best})

    def _newest(self, last: Path) -> list[Path]:
        """The newest good ones up to the last one written, and all after the first of them."""
        found = listed(self.dirpath)
        good = [path for path in found if path.name not in self._damaged]
        end = good.index(last) + 1
        return found[found.index(good[max(0, end - self.keep_last)]) :]

    def _later(self, state: FitState) -> list[Path]:
        """What lies here after the one that was resumed, if that was one of these."""
        origin, found = state.resumed_from, listed(self.dirpath)
        if origin is None or origin.resolve().parent != self.dirpath.resolve():
            return []
        names = [path.name for path in found]
        return found[names.index(origin.name) + 1 :] if origin.name in names else []

    def _take_over(self, path: Path, state: FitState) -> None:
        """Counts a checkpoint as this training's own, with what it says of the monitor.

        Another training's would be pruned, and later ones of this one be taken for newer.
        """
        try:
            found = about(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.dirpath} holds {path.name}, which cannot be read ({error}): this training "
                "may not have written it; remove it, or name another folder"
            ) from error
        ours = found["config"].get("training") == state.training
        if not ours or found["step"] > state.steps_before + state.step:
            whose = "this training, later than where it stands" if ours else "another training"
            raise CheckpointError(
                f"{self.dirpath} holds {path.name}, a checkpoint of {whose}: go on from "
                f"it with fit(resume_from={str(self.dirpath)!r}), remove it, or name another folder"
            )
        score = self._score(found["metrics"])
        self._best += [] if score is None else [(score, path.name)]

    def __repr__(self) -> str:
        """One line."""
        return f"ModelCheckpoint({str(self.dirpath)!r}, monitor={self.monitor!r})"


def _is_whole(path: Path) -> bool:
    try:
        about(path, whole=True)
    except CheckpointError:
        return False
    return True
