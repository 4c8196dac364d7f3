"""The folder of a comparison: one file a trial, from which an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from amortized.compare.training.trial import Job, Plan, Trial
from amortized.errors import CheckpointError, UsageError
from amortized.fit.checkpoint_values import number_of
from amortized.fit.folder import write_json


@final
class Results:
    """Finished trials, each in a file that is written as a whole.

    Args:
        path: the folder, made if it is missing; None: nothing is read or written.
        plan: what a trial in the folder must have shared to count.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, path: Path | None, plan: Plan) -> None:
        self.path, self.config = path, config_of(plan)
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"folder={str(path)!r}: {error.strerror}") from error

    def read(self, job: Job) -> Trial | None:
        """The trial, if it is there.

        Raises:
            UsageError: it is there, of another configuration; the message names what differs.
            CheckpointError: the file cannot be read.
        """
        file = self._file(job.candidate, job.seed)
        if file is None or not file.exists():
            return None
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            trial = Trial(**{name: _numbers(value) for name, value in held["trial"].items()})
            then = dict(held["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({type(error).__name__}: {error}); remove it, and its "
                "trial is run again"
            ) from error
        now = self._config(job)
        for name in dict.fromkeys([*now, *then]):
            if then.get(name) != now.get(name):
                raise UsageError(
                    f"folder={str(self.path)!r}: the trial of {job.candidate!r} with seed "
                    f"{job.seed} in it had {name} = {json.dumps(then.get(name))}, and now it is "
                    f"{json.dumps(now.get(name))}; ask for the same, or name another folder"
                )
        return trial

    def write(self, job: Job, trial: Trial) -> None:
        """Keep a finished trial.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        file = self._file(job.candidate, job.seed)
        if file is not None:
            write_json(file, {"config": self._config(job), "trial": dict(vars(trial))})

    def _config(self, job: Job) -> dict[str, Any]:
        return {**self.config, "loss": described(job.loss)}

    def _file(self, candidate: str, seed: int) -> Path | None:
        if self.path is None:
            return None
        # names may hold anything, and differ only in signs that a file's name cannot hold
        plain = re.sub(r"[^A-Za-z0-9]+", "-", candidate).strip("-")[:40]
        mark = hashlib.sha256(candidate.encode()).hexdigest()[:6]
        return self.path / f"{plain}-{mark}-seed{seed}.json"


def config_of(plan: Plan) -> dict[str, Any]:
    """What a comparison was asked for, as plain values.

    A program file counts by its name, since folders are moved.
    """
    values = {**vars(plan), "device": None if plan.device is None else str(plan.device)}
    program = plan.program
    values["program"] = program.name if isinstance(program, Path) else described(program)
    return {name: _plain(value) for name, value in values.items()}


def described(value: Any) -> str:
    """An object in words that are the same in every process."""
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else described(value)


def _numbers(value: Any) -> Any:
    return [number_of(item) for item in value] if isinstance(value, list) else value
