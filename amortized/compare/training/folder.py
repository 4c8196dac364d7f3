"""The folder of a comparison: one file a trial, from which an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final, final

from amortized.compare.training.beginning import Beginning, optimizer_of
from amortized.compare.training.identity import difference, digest_of, made_of
from amortized.compare.training.kept import DamagedError, read_trial
from amortized.compare.training.trial import Job, Plan, Trial, beginning_of
from amortized.errors import CheckpointError, UsageError
from amortized.fit.folder import write_json

# the first one kept neither what programs and losses are made of nor what a trial started from
_FORMAT: Final = 2
_SHOWN: Final = 120


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
        self.path, self.plan = path, plan
        self._beginnings: dict[int, Beginning] = {}
        self.config: dict[str, Any] = {}
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"folder={str(path)!r}: {error.strerror}") from error
        self.config = config_of(plan)

    def read(self, job: Job) -> Trial | None:
        """The trial, if it is there; once a seed, the program is built to see how trials begin.

        Raises:
            UsageError: it is there, of another configuration; the message names what differs.
            CheckpointError: the file cannot be read, or no trial of this comparison is in it.
        """
        file = self._file(job.candidate, job.seed)
        if file is None or not file.exists():
            return None
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            then, trial = _opened(held, file)
            found = read_trial(trial, job.candidate, job.seed, then.get("max_steps"))
        except (OSError, ValueError, DamagedError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}); remove it, and its trial is run again"
            ) from error
        self._refuse(job, difference(then, self._config(job), ""))
        if job.seed not in self._beginnings:
            self._beginnings[job.seed] = beginning_of(self.plan, job)
        self._refuse(job, found.beginning.differs(self._beginnings[job.seed]))
        return found

    def write(self, job: Job, trial: Trial) -> None:
        """Keep a finished trial.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        file = self._file(job.candidate, job.seed)
        if file is not None:
            kept = {"config": self._config(job), "trial": dict(vars(trial))}
            write_json(file, {"format": _FORMAT, **kept})

    def _refuse(self, job: Job, found: tuple[str, Any, Any] | None) -> None:
        if found is None:
            return
        name, then, now = found
        raise UsageError(
            f"folder={str(self.path)!r}: the trial of {job.candidate!r} with seed {job.seed} in it "
            f"had {name} = {_shown(then)}, and now it is {_shown(now)}; ask for the same, or name "
            "another folder"
        )

    def _config(self, job: Job) -> dict[str, Any]:
        return {**self.config, "loss": _text(job.loss), "loss options": made_of(job.loss)}

    def _file(self, candidate: str, seed: int) -> Path | None:
        if self.path is None:
            return None
        # names may hold anything, and differ only in signs that a file's name cannot hold
        plain = re.sub(r"[^A-Za-z0-9]+", "-", candidate).strip("-")[:40]
        mark = hashlib.sha256(candidate.encode()).hexdigest()[:6]
        return self.path / f"{plain}-{mark}-seed{seed}.json"


def config_of(plan: Plan) -> dict[str, Any]:
    """What a comparison was asked for, as plain values.

    A program file counts by its name and its text, since folders are moved.
    """
    values = {**vars(plan), "device": None if plan.device is None else str(plan.device)}
    if isinstance(plan.program, Path):
        values["program"] = {"file": plan.program.name, "text": _digest(plan.program)}
    # what differs is named by the first of these, so words come before digests of code
    found: dict[str, Any] = {"optimizer made": optimizer_of(plan.optimizer, plan.lr)}
    return {**found, **{name: made_of(value) for name, value in values.items()}}


def _opened(held: Any, file: Path) -> tuple[dict[str, Any], Any]:
    """Configuration and trial.

    Raises:
        CheckpointError: the file was written before it could be compared.
        DamagedError: they are not there.
    """
    if not isinstance(held, dict) or not isinstance(held.get("config"), dict):
        raise DamagedError("expected an object with config and trial")
    if held.get("format") != _FORMAT:
        raise CheckpointError(
            f"{file} was written by another version of amortized, and does not say what its trial "
            "started from; name another folder, or remove the file, and its trial is run again"
        )
    return held["config"], held.get("trial")


def _digest(path: Path) -> str:
    try:
        return digest_of(path.read_bytes())
    except OSError:  # opening the program says so
        return ""


def _text(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
