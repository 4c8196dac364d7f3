"""Files of arrays that are mapped into memory, not read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from amortized.errors import DataError

_DTYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
# What the format allows.
_LONGEST_HEADER: Final = 100_000_000


def open_safetensors(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file by name, read-only and mapped: a row is read when used.

    The dict is data for `SVI.fit`, whose programs then have its names as arguments; or take the
    arrays that you want. The file may be larger than memory, which ``safetensors.safe_open`` for
    torch cannot map on Linux by default; the package safetensors is not needed.

    Raises:
        DataError: no such file, no safetensors file, a part of one, or numbers that numpy lacks
            (``BF16``, ``F8_...``).

    >>> import tempfile
    >>> header = b'{"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.safetensors")
    ...     size = len(header).to_bytes(8, "little")
    ...     _ = path.write_bytes(size + header + np.ones((2, 3), "<f4").tobytes())
    ...     {name: array.shape for name, array in open_safetensors(path).items()}
    {'x': (2, 3)}
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 0 < length <= min(size, _LONGEST_HEADER) else b""
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return {name: _map(path, name, at, 8 + length, size) for name, at in entries.items()}
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error}; expected a file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: its header is not that of a safetensors file ({type(error).__name__}: "
            f"{error}); write it with safetensors.torch.save_file"
        ) from error


def _map(
    path: Path, name: str, entry: dict[str, Any], start: int, size: int
) -> np.ndarray[Any, Any]:
    """One array of the file, whose data begin at ``start``."""
    kind, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if kind not in _DTYPES:
        raise DataError(
            f"{path}: {name!r} holds {kind}, which numpy has no type for; expected one of "
            f"{', '.join(_DTYPES)}: write it as F32"
        )
    dtype = np.dtype(_DTYPES[kind])
    if end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name!r} of shape {shape} in {end - begin} bytes")
    # a map beyond the end of its file kills the process when it is read
    if begin < 0 or start + end > size:
        raise DataError(
            f"{path}: {name!r} ends at byte {start + end}, and the file has {size}: it was cut "
            "short; copy it again"
        )
    if end == begin:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset=start + begin, shape=shape)
