"""The metadata of a checkpoint: what it says, and reading it without trusting it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from amortized.errors import CheckpointError
from amortized.fit.checkpoint_files import write_file
from amortized.fit.checkpoint_values import (
    brief,
    checksum,
    fingerprint,
    json_value,
    number_of,
)

Metadata = dict[str, Any]

# Far more than names and options need: what is larger is not read into memory.
_MAX_BYTES: Final = 1 << 26


def describe(
    *,
    step: int,
    epoch: int,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
) -> Metadata:
    """Everything but the format version and the checksums.

    Raises:
        CheckpointError: a value that has no place in it.
    """
    for name, count in (("step", step), ("epoch", epoch)):
        if not _is_count(count):
            raise CheckpointError(f"{name} is {count!r}; expected a whole number from 0")
    return {
        "versions": {
            "amortized": _installed("amortized"),
            "torch": str(torch.__version__),
            "pyro": _installed("pyro-ppl"),
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "epoch": epoch,
        "metrics": {_text(name): _metric(name, value) for name, value in metrics.items()},
        "config": json_value(dict(config), "config"),
        "fingerprint": fingerprint(parameters),
    }


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _text(name: Any) -> str:
    if type(name) is not str:
        raise CheckpointError(f"metrics has the key {name!r}; expected names: use a string")
    return name


def _metric(name: str, value: Any) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, int | float):
        kind = type(value).__name__
        raise CheckpointError(f"metrics[{name!r}] is of type {kind}; expected a number: use float")
    return float(value)


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Writes the file, with a checksum of all that it says."""
    said = json_value(metadata, "metadata")
    whole = said | {"self": checksum(said)}
    text = json.dumps(whole, indent=1, allow_nan=False).encode("ascii")
    if len(text) > _MAX_BYTES:
        raise CheckpointError(
            f"{path.name} would have {len(text)} bytes; expected at most {_MAX_BYTES}: write "
            "large values to the state and not to config or metrics"
        )
    write_file(path, lambda file: file.write(text))


def read_metadata(path: Path, format_version: int) -> Metadata:
    """What the file says, its checksum verified and removed; of this format or an older one.

    Raises:
        CheckpointError: no such file, a damaged one, or one of a newer format.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing: use another checkpoint")
    with open(path, "rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise CheckpointError(
            f"{path.name} has more than {_MAX_BYTES} bytes: use another checkpoint"
        )
    try:
        metadata = json.loads(text)
        if not isinstance(metadata, dict):
            raise ValueError("no dict")
        check_version(metadata.get("format_version"), format_version)
        genuine = metadata.pop("self", None) == checksum(metadata)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} holds no dict in JSON ({brief(error)}): use another checkpoint"
        ) from error
    if not genuine:
        raise CheckpointError(
            f"{path.name} differs from its own checksum, so it was damaged or edited: use another "
            "checkpoint"
        )
    if _is_dict(metadata.get("metrics")):
        metadata["metrics"] = {n: number_of(value) for n, value in metadata["metrics"].items()}
    return metadata


def check_version(version: Any, newest: int) -> None:
    """Refuses a format version that does not exist, or not yet.

    Raises:
        CheckpointError: naming both versions.
    """
    if not _is_count(version) or version == 0:
        raise CheckpointError(
            f"its format version is {version!r:.40}; expected a number from 1 to {newest}: use "
            "another checkpoint"
        )
    if version > newest:
        raise CheckpointError(
            f"its format version is {version!r:.40}; this version of amortized reads versions up "
            f"to {newest}: upgrade amortized"
        )


def check_fields(metadata: Metadata) -> None:
    """Refuses metadata in which an entry is missing or of another type.

    Raises:
        CheckpointError: naming the entry.
    """
    for name, (expected, fits) in _FIELDS.items():
        if name not in metadata:
            raise CheckpointError(f"its metadata lack {name!r}: use another checkpoint")
        if not fits(metadata[name]):
            raise CheckpointError(
                f"its metadata have {brief(repr(metadata[name]), 40)} as {name!r}; expected "
                f"{expected}: use another checkpoint"
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_sha256(value: Any) -> bool:
    return _is_text(value) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _is_dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: _is_dict(value) and all(fits(item) for item in value.values())


def _is_parameter(value: Any) -> bool:
    if type(value) is not list or len(value) != 2 or type(value[1]) is not list:
        return False
    return _is_text(value[0]) and all(_is_count(size) for size in value[1])


def _is_fingerprint(value: Any) -> bool:
    if not _is_dict(value) or value.keys() != {"parameters", "hash"}:
        return False
    table = value["parameters"]
    return _is_dict_of(_is_parameter)(table) and value["hash"] == checksum(table)


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = MappingProxyType(
    {
        "versions": ("a dict of strings", _is_dict_of(_is_text)),
        "threads": ("a whole number", _is_count),
        "created": ("a time as text", _is_text),
        "step": ("a whole number", _is_count),
        "epoch": ("a whole number", _is_count),
        "metrics": ("a dict of numbers", _is_dict_of(_is_number)),
        "config": ("a dict", _is_dict),
        "fingerprint": ("the names, dtypes and shapes of parameters", _is_fingerprint),
        "sha256": ("a checksum", _is_sha256),
    }
)
