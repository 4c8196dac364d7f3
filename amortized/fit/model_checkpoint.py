"""Checkpoints while training: the newest ones to go on from, and the best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, final

from amortized.errors import CheckpointError, NonFiniteError, UsageError
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.checkpoint import listed, prune, read


@final
class ModelCheckpoint(Callback):
    """Writes checkpoints below a folder; ``fit(resume_from=folder)`` goes on from the newest.

    Each is written whole or not at all. What training was resumed from counts as its own.

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
        UsageError: an argument out of range.
        CheckpointError: the folder cannot be written, or holds another training's checkpoints.

    >>> ModelCheckpoint("runs/vae", every_n_steps=500)
    ModelCheckpoint('runs/vae', monitor='val_loss')
    """

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
        at_least = {"save_top_k": (save_top_k, 0), "keep_last": (keep_last, 1)}
        at_least |= {"every_n_epochs": (every_n_epochs, 1)}
        at_least |= {} if every_n_steps is None else {"every_n_steps": (every_n_steps, 1)}
        for name, (value, low) in at_least.items():
            if value < low:
                raise UsageError(f"ModelCheckpoint({name}={value}): expected at least {low}")
        if mode not in ("min", "max"):
            raise UsageError(f"ModelCheckpoint(mode={mode!r}): expected 'min' or 'max'")
        self.dirpath = Path(dirpath)
        self.monitor, self.mode = monitor, mode
        self.save_top_k, self.keep_last = save_top_k, keep_last
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.save_on_exception = save_on_exception
        self.last_path: Path | None = None
        self._best: list[tuple[float, str]] = []
        self._saved_at = -1
        self._score: float | None = None
        self._resumed: str | None = None

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint so far."""
        return self.dirpath / self._best[0][1] if self._best else None

    def on_fit_start(self, state: FitState) -> None:
        """Makes the folder, and refuses one that belongs to another training."""
        self._best, self._saved_at = [], -1
        origin = state.resumed_from
        ours = origin is not None and origin.resolve().parent == self.dirpath.resolve()
        self._resumed = origin.name if origin is not None and ours else None
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
        self._refuse_another_training(state)

    def on_train_batch_end(self, state: FitState) -> None:
        """Saves every so many steps."""
        if self.every_n_steps is not None and state.step % self.every_n_steps == 0:
            self._save(state)

    def on_train_epoch_end(self, state: FitState) -> None:
        """Saves every so many epochs, and remembers the best."""
        if state.epoch % self.every_n_epochs:
            return
        value = state.history.last().get(self.monitor, math.nan)
        if math.isnan(value) or self.save_top_k == 0:
            self._save(state)
            return
        sign = 1.0 if self.mode == "min" else -1.0
        self._save(state, score=sign * value)

    def on_exception(self, state: FitState, error: BaseException) -> None:
        """Saves what was learned, unless an error caught a step half-done."""
        unsaved = self._saved_at != state.step
        sound = state.whole and not isinstance(error, CheckpointError | NonFiniteError)
        if self.save_on_exception and sound and unsaved and state.step > 0:
            self._save(state)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, by name below the folder, and the score of the one being written."""
        return {"best": [[score, name] for score, name in self._best], "own": self._score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the best of a training that is resumed."""
        here = {path.name for path in listed(self.dirpath)}
        ranked = {(score, name) for score, name in state["best"] if name in here}
        if state["own"] is not None and self._resumed is not None:
            ranked.add((state["own"], self._resumed))
        self._best = sorted(ranked)[: self.save_top_k]

    def _save(self, state: FitState, score: float | None = None) -> None:
        if state.save is None:
            return
        self._score = score
        self.last_path = state.save(self.dirpath)
        self._saved_at = state.step
        if score is not None:
            ranked = sorted([*self._best, (score, self.last_path.name)])
            self._best = ranked[: self.save_top_k]
        best = {self.dirpath / name for _, name in self._best}
        prune(self.dirpath, {*self._newest(self.last_path), *best})

    def _newest(self, last: Path) -> list[Path]:
        """The newest ones up to the last one written, and those beyond it, which are damaged."""
        found = listed(self.dirpath)
        end = found.index(last) + 1
        return found[max(0, end - self.keep_last) :]

    def _refuse_another_training(self, state: FitState) -> None:
        """Those of another one would be pruned, and later ones of this one be taken for newer."""
        origin = state.resumed_from
        stands = -1 if origin is None else read(origin).metadata["step"]
        for path in reversed(listed(self.dirpath)):
            try:
                about = read(path).metadata
            except CheckpointError as error:
                if origin is not None and origin.parent.resolve() == self.dirpath.resolve():
                    continue  # damaged: perhaps the reason why an earlier one was resumed
                raise CheckpointError(
                    f"{self.dirpath} holds {path.name}, which this training did not write and "
                    f"cannot read ({error}); remove it, or name another folder"
                ) from error
            ours = about["config"].get("training") == state.training
            if ours and about["step"] <= stands:
                continue
            whose = "this training, later than what is resumed" if ours else "another training"
            raise CheckpointError(
                f"{self.dirpath} holds {path.name}, a checkpoint of {whose}: go on from "
                f"it with fit(resume_from={str(self.dirpath)!r}), remove it, or name another folder"
            )

    def __repr__(self) -> str:
        """One line."""
        return f"ModelCheckpoint({str(self.dirpath)!r}, monitor={self.monitor!r})"
