"""The folder of a run: what was asked for, what was recorded, and its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from amortized.errors import CheckpointError, UsageError
from amortized.fit.callbacks import Callback, FitState
from amortized.fit.checkpoint import listed, prune
from amortized.fit.checkpoint_values import json_value

CONFIG: Final = "config.json"
METRICS: Final = "metrics.json"
HISTORY: Final = "history.csv"
CHECKPOINTS: Final = "checkpoints"
LAUNCHERS: Final = "launchers.json"


@final
class RunFolder(Callback):
    """Writes ``config.json`` when training starts, and ``history.csv`` after each epoch.

    Every file is replaced as a whole, so that a reader never meets half of one.

    Args:
        path: the folder, made if it is missing.
        config: what was asked for, as plain values.
        launchers: who started the processes of the run, and starts them anew if one dies.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], launchers: Sequence[str] = ()
    ) -> None:
        self.path, self.config, self.launchers = path, dict(config), list(launchers)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {path}: {error.strerror}") from error

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / CHECKPOINTS

    def remove_if_empty(self) -> None:
        """Leaves no empty folder behind where nothing came of a run."""
        with suppress(OSError):
            self.path.rmdir()

    def forget(self) -> None:
        """Removes the checkpoints of an earlier run; its other files are written anew."""
        if self.checkpoints.is_dir():
            prune(self.checkpoints, 0)

    def refuse_another_run(self, resume: bool, free: tuple[str, ...] = ()) -> None:
        """Refuse a folder that holds another run than the one asked for.

        Args:
            resume: whether the run in the folder is to go on.
            free: entries of the configuration that may differ from then.

        Raises:
            UsageError: naming what differs, or that there is nothing to go on with.
        """
        there = bool(listed(self.checkpoints))
        if there and not resume:
            raise UsageError(
                f"--out {self.path} holds an earlier run: add --resume to go on with it, "
                "--overwrite to start again, or name another folder"
            )
        if resume and not there:
            raise UsageError(
                f"--resume: {self.path} holds no checkpoint to go on with; start without --resume"
            )
        if resume:
            self._refuse_other_config(free)

    def begun_by(self, launchers: Sequence[str]) -> bool:
        """Whether one of these launchers began the run in the folder, and got to a checkpoint."""
        try:
            text = (self.path / LAUNCHERS).read_text(encoding="utf-8") if launchers else "{}"
            known = json.loads(text)["launchers"]
        except (OSError, ValueError, TypeError, KeyError):  # then it was not begun by these
            return False
        begun = isinstance(known, list) and any(name in known for name in launchers)
        return begun and bool(listed(self.checkpoints))

    def on_fit_start(self, state: FitState) -> None:
        """Writes what was asked for, and whose processes these are."""
        write_json(self.path / CONFIG, self.config)
        if self.launchers:
            write_json(self.path / LAUNCHERS, {"launchers": self.launchers})
        else:
            (self.path / LAUNCHERS).unlink(missing_ok=True)

    def on_train_epoch_end(self, state: FitState) -> None:
        """Writes the history so far."""
        write_text(self.path / HISTORY, state.history.csv())

    def on_fit_end(self, state: FitState) -> None:
        """Writes the history, an epoch that was cut short included."""
        write_text(self.path / HISTORY, state.history.csv())

    def _refuse_other_config(self, free: tuple[str, ...]) -> None:
        before = _read_json(self.path / CONFIG)
        # an option that one of the two does not know, being of another version, says nothing
        for name, now in self.config.items():
            then = before.get(name, now)
            if name not in free and then != now:
                raise UsageError(
                    f"--resume: the run in {self.path} had {name} = {json.dumps(then)}, and now it "
                    f"is {json.dumps(now)}; give the same options, or name another folder"
                )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes plain values as JSON, in one piece; infinity and NaN as their names, as text."""
    plain = json_value(dict(values), path.name)
    write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file as a whole.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses even to look for it
            temporary.unlink()
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; make room or the folder "
            "writable, and go on with --resume"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--resume: {path} holds no options")
    return found
