"""Checkpoints: folders that are written whole or not at all, and read without running code.

A checkpoint is a folder ``step-00001234`` with two files: ``state.pt``, tensors and plain values as
``torch.save`` writes them, and ``metadata.json``, which says what they are and has checksums of
both. The checksums are compared first, then ``torch.load(weights_only=True)`` reads the state.

To change the format, raise ``FORMAT_VERSION`` by one, and enter into ``_MIGRATIONS``, under the old
version, a function ``(state, metadata) -> (state, metadata)`` that makes the new out of the old. It
need not touch ``metadata["format_version"]``. Files of every older version then pass through it; it
is given an empty state where only the metadata are wanted.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import IO, Any, Final, final

import torch
from torch import Tensor

from amortized.errors import CheckpointError
from amortized.estimators.running import complete
from amortized.fit import checkpoint_files as files
from amortized.fit.checkpoint_files import Keep
from amortized.fit.checkpoint_files import listed as listed
from amortized.fit.checkpoint_files import prune as prune
from amortized.fit.checkpoint_metadata import (
    Metadata,
    check_fields,
    check_version,
    describe,
    read_metadata,
    write_metadata,
)
from amortized.fit.checkpoint_values import brief, storable
from amortized.fit.checkpoint_values import differences as differences

State = dict[str, Any]
Migration = Callable[[State, Metadata], tuple[State, Metadata]]
Place = str | os.PathLike[str]

FORMAT_VERSION: Final = 4
UNKNOWN: Final = "unknown"
"""What an older file does not say."""
STATE: Final = "state.pt"
METADATA: Final = "metadata.json"


def _with_rows_and_schedules(state: State, metadata: Metadata) -> tuple[State, Metadata]:
    """Version 1 did not say how many rows a batch had, nor whether the rates had a schedule."""
    moment = state.get("moment")
    if isinstance(moment, dict) and isinstance(moment.get("identity"), dict):
        new = {"rows a batch": UNKNOWN, "learning-rate schedules": UNKNOWN}
        moment["identity"] = new | moment["identity"]
    return state, metadata


def _with_valid_json(state: State, metadata: Metadata) -> tuple[State, Metadata]:
    """Version 2 wrote infinity as a bare word, which its reader and ours take."""
    return state, metadata


def _with_running_costs(state: State, metadata: Metadata) -> tuple[State, Metadata]:
    """Version 3 had no running offset below neural baselines; nor had moments to go back to."""
    waiting: list[Any] = [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            complete(value)
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return state, metadata


_MIGRATIONS: Final[Mapping[int, Migration]] = MappingProxyType(
    {1: _with_rows_and_schedules, 2: _with_valid_json, 3: _with_running_costs}
)

_ZIP: Final = b"PK\x03\x04"
_REASONS: Final = 3


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, and the folder that it was read from.

    Args:
        state: as it was given to ``write``; tensors on the device that was asked for.
        metadata: ``format_version``, ``versions``, ``threads``, ``created``, ``step``, ``epoch``,
            ``metrics``, ``config``, ``fingerprint`` and ``sha256``, of types that were checked.
        path: the folder.
    """

    state: State
    metadata: Metadata
    path: Path


def write(
    root: Place,
    state: Mapping[str, Any],
    *,
    step: int,
    epoch: int,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    keep: Keep | None = None,
) -> Path:
    """Writes a checkpoint below ``root``; killed at any moment, it leaves the earlier ones whole.

    Args:
        root: the folder of all the checkpoints; made if it is missing.
        state: nested dicts, lists and tuples of tensors, numbers, strings and None.
        step: optimizer steps so far; it gives the folder its name.
        epoch: epochs so far.
        metrics: numbers by name.
        config: options; written as JSON, so that tuples come back as lists.
        parameters: the program's parameters by name, for the fingerprint.
        keep: which checkpoints stay: so many of the newest, these paths, or those that a function
            picks out of all paths, oldest first; None: all. The new one always stays.

    Returns:
        The new folder. If its step has a folder already, the name ends in ``-v2``, and so on.

    Raises:
        CheckpointError: a value that could not be read again, or the disk failed.

    >>> from tempfile import mkdtemp
    >>> path = write(mkdtemp(), {"x": 1}, step=5, epoch=0, metrics={}, config={}, parameters={})
    >>> path.name, read(path).state
    ('step-00000005', {'x': 1})
    """
    root = Path(root)
    stored = storable(dict(state))
    about = describe(step=step, epoch=epoch, metrics=metrics, config=config, parameters=parameters)
    with files.os_errors(f"cannot write a checkpoint below {root}"):
        files.make_root(root)
        with files.temporary_folder(root) as folder:
            digest = files.write_file(folder / STATE, lambda file: _save(stored, file))
            whole = {"format_version": FORMAT_VERSION} | about | {"sha256": digest}
            write_metadata(folder / METADATA, whole)
            path = files.publish(folder, root, step)
    prune(root, (lambda found: found) if keep is None else keep, always=[path])
    return path


def _save(state: State, file: IO[bytes]) -> None:
    try:
        torch.save(state, file)
    except Exception as error:
        raise CheckpointError(
            f"the state cannot be saved: {brief(error)}; expected what torch.save takes"
        ) from error


def read(path: Place, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Reads a checkpoint folder; given a folder of them, like :func:`newest`.

    Nothing in the files is run: what is unpickled is limited to tensors and plain values. (That
    limit has a known hole in torch before 2.10, advisory GHSA-63cw-57p8-fm3p: use a newer torch
    for files of strangers.)

    Args:
        path: the folder.
        map_location: the device to put tensors on.

    Raises:
        CheckpointError: no such folder, a damaged checkpoint, one of a newer format, or a device
            that is not there.
    """
    path, device = Path(path), _device(map_location)
    with files.os_errors(f"cannot read the checkpoint {path}"):
        if not path.is_dir():
            raise CheckpointError(
                f"cannot read the checkpoint {path}: there is "
                f"{'a file' if path.exists() else 'nothing'} of that name; expected a folder, like "
                f"{files.folder_name(1234)}, or one that holds such folders: give its path"
            )
        inside = files.position(path.name) or any((path / n).exists() for n in (STATE, METADATA))
    return _read_folder(path, device) if inside else newest(path, device)


def about(path: Place, *, whole: bool = False) -> Metadata:
    """The metadata of one checkpoint folder; its state is not loaded.

    Args:
        path: the folder.
        whole: whether the state is compared with its checksum too (its bytes are read for that).

    Raises:
        CheckpointError: the metadata are damaged, or the state if that was asked.

    >>> from tempfile import mkdtemp
    >>> path = write(mkdtemp(), {"x": 1}, step=5, epoch=0, metrics={}, config={}, parameters={})
    >>> about(path)["step"]
    5
    """
    folder = Path(path)
    try:
        with files.os_errors("a file cannot be read"):
            metadata = read_metadata(folder / METADATA, FORMAT_VERSION)
            if whole:
                with _opened_state(folder / STATE, metadata.get("sha256")):
                    pass
        return _checked({}, metadata, folder)[1]
    except CheckpointError as error:
        raise _unreadable(folder, error) from error


def newest(root: Place, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Reads the newest checkpoint below ``root`` that is whole; one warning names the others.

    Args:
        root: the folder that holds the checkpoints.
        map_location: the device to put tensors on.

    Raises:
        CheckpointError: there is none.
    """
    device = _device(map_location)
    refused: dict[Path, str] = {}
    # Listed anew each time: a run that is still going may write and delete meanwhile.
    while left := [path for path in listed(root) if path not in refused]:
        try:
            found = _read_folder(left[-1], device)
        except CheckpointError as error:
            refused[left[-1]] = str(error)
            continue
        reasons = [reason for path, reason in refused.items() if os.path.lexists(path)]
        if reasons:
            warnings.warn(f"{_joined(reasons)}; using {found.path.name} instead", stacklevel=2)
        return found
    reasons = f": {_joined(list(refused.values()))}" if refused else ""
    raise CheckpointError(
        f"no checkpoint can be read below {root}{reasons}; expected a folder like "
        f"{files.folder_name(1234)}: give the path of the folder that holds it"
    )


def _joined(reasons: list[str]) -> str:
    rest = len(reasons) - _REASONS
    return "; ".join(reasons[:_REASONS] + ([f"and {rest} more"] if rest > 0 else []))


def migrate(
    state: State, metadata: Metadata, table: Mapping[int, Migration], target: int
) -> tuple[State, Metadata]:
    """Brings a checkpoint of an older format to the format ``target``, one version at a time.

    Args:
        state: as it was read.
        metadata: as it was read.
        table: for each old version the function that makes the next one.
        target: the version to reach.

    Raises:
        CheckpointError: a newer format than ``target``, one that the table lacks, or a content
            that a migration cannot work with.

    >>> table = {1: lambda state, metadata: ({"new": state["old"]}, metadata)}
    >>> migrate({"old": 7}, {"format_version": 1}, table, target=2)
    ({'new': 7}, {'format_version': 2})
    """
    check_version(metadata["format_version"], target)
    for version in range(metadata["format_version"], target):
        if version not in table:
            raise CheckpointError(
                f"its format version is {version}, which is not read any more; expected {target}: "
                "open it with the version of amortized that wrote it"
            )
        try:
            state, metadata = table[version](state, metadata)
            metadata = {**metadata, "format_version": version + 1}
        except Exception as error:  # what a file holds may be anything
            raise CheckpointError(
                f"its format version is {version} and it cannot be brought to {version + 1} "
                f"({brief(error)}): use another checkpoint"
            ) from error
    return state, metadata


def _device(map_location: str | torch.device) -> torch.device:
    """Looked at before any file: a device that is not there makes no file a damaged one."""
    try:
        device = torch.device(map_location)
        torch.empty(0, device=device)
    except Exception as error:
        raise CheckpointError(
            f"cannot put tensors on {str(map_location)!r}: {brief(error)}; expected a device of "
            "this machine: use 'cpu'"
        ) from error
    return device


def _read_folder(folder: Path, device: torch.device) -> Checkpoint:
    try:
        with files.os_errors("a file cannot be read"):
            metadata = read_metadata(folder / METADATA, FORMAT_VERSION)
            state = _read_state(folder / STATE, metadata.get("sha256"), device)
        return Checkpoint(*_checked(state, metadata, folder), folder)
    except CheckpointError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: CheckpointError) -> CheckpointError:
    return CheckpointError(f"cannot read the checkpoint {folder}: {error}")


def _checked(state: State, metadata: Metadata, folder: Path) -> tuple[State, Metadata]:
    """Brought to the newest format, with all entries that it must have."""
    state, metadata = migrate(state, metadata, _MIGRATIONS, FORMAT_VERSION)
    check_fields(metadata)
    place = files.position(folder.name)
    if place is not None and place[0] != metadata["step"]:
        raise CheckpointError(
            f"its metadata are of step {metadata['step']}, not of the step in its name: rename it"
        )
    return state, metadata


@contextmanager
def _opened_state(path: Path, expected: Any) -> Iterator[IO[bytes]]:
    """The file of the state, found to be what its checksum says."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing: use another checkpoint")
    with open(path, "rb") as file:
        # The same open file is hashed and loaded: no other can be put in its place in between.
        if files.sha256(file) != expected:
            raise CheckpointError(
                f"{path.name} differs from its checksum in {METADATA}, so it was damaged or "
                "replaced: use another checkpoint"
            )
        yield file


def _read_state(path: Path, expected: Any, device: torch.device) -> State:
    with _opened_state(path, expected) as file:
        state = _loaded(file, device)
    if type(state) is not dict:
        kind = type(state).__name__
        raise CheckpointError(f"{STATE} holds a {kind}; expected a dict: use another checkpoint")
    return state


def _loaded(file: IO[bytes], device: torch.device) -> Any:
    if file.read(len(_ZIP)) != _ZIP:
        raise CheckpointError(f"{STATE} is no file of torch.save: use another checkpoint")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of oddities before it refuses them
            return torch.load(file, map_location=device, weights_only=True)
    except UnpicklingError as error:
        # torch's own text tells how to run the code after all
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f" (it asks for {name[1]})" if name else ""
        raise CheckpointError(
            f"{STATE} holds more than tensors and plain values{asks}, so it was not written by "
            "amortized; nothing in it was run: do not use it"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{STATE} cannot be loaded ({brief(error)}): use another checkpoint"
        ) from error
