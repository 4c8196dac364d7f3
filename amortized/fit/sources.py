"""Where data points lie: in memory, in a mapped file, or picked out of either."""

from __future__ import annotations

import math
import mmap
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from amortized.errors import CheckWarning, DataError

# Looked at in one piece, in elements; a piece in memory stays in the processor's cache.
_AT_ONCE: Final = 2**20
# Of a file so many elements are searched at most: 256 MiB of float32, seconds on any disk.
_OF_A_FILE: Final = 2**26


class Rows(ABC):
    """An array whose first dim counts data points; what is asked for comes as a tensor.

    Attributes:
        length: data points.
        width: elements of one data point.
        floating: whether there can be a NaN.
        in_file: whether looking means reading a file.
    """

    length: int
    width: int
    floating: bool
    in_file: bool = False

    @abstractmethod
    def span(self, start: int, stop: int) -> Tensor:
        """Consecutive rows, to be looked at."""

    def batch(self, start: int, stop: int) -> Tensor:
        """Consecutive rows with memory of their own: a program may write into its batch."""
        return self.span(start, stop)

    @abstractmethod
    def select(self, rows: Tensor) -> Tensor:
        """Rows by number, in the order asked for; the numbers are on the CPU."""


@final
class InMemory(Rows):
    """A tensor: consecutive rows are a view, others are gathered."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.length, self.width = tensor.shape[0], math.prod(tensor.shape[1:])
        self.floating = tensor.is_floating_point()

    def span(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self.tensor[start:stop]

    def batch(self, start: int, stop: int) -> Tensor:
        """A copy."""
        return self.tensor[start:stop].clone()

    def select(self, rows: Tensor) -> Tensor:
        """Gathered row by row: indexing does so element by element (2.6 to 10 times slower)."""
        return self.tensor.index_select(0, rows.to(self.tensor.device))


@final
class Mapped(Rows):
    """A file that is mapped: what is asked for is read, copied and converted, nothing else."""

    in_file = True

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.length, self.width = array.shape[0], math.prod(array.shape[1:])
        self.floating = array.dtype.kind == "f"
        self._read_as = _native(array.dtype)
        self._dtype = _tensor_dtype(array.dtype)

    def span(self, start: int, stop: int) -> Tensor:
        """A copy: programs may write into a batch, and must not write into the file."""
        return self._tensor(np.array(self.array[start:stop], self._read_as, copy=True, order="C"))

    def select(self, rows: Tensor) -> Tensor:
        """Read in the order of the file, a fifth faster from a disk, and put as asked."""
        numbers = rows.numpy()
        order = np.argsort(numbers)
        found = np.empty((len(numbers), *self.array.shape[1:]), self._read_as)
        found[order] = self.array[numbers[order]]
        return self._tensor(found)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.as_tensor(array, dtype=self._dtype)


@final
class Picked(Rows):
    """Some rows of another array, by number, without a copy of them."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self.rows = rows
        self.numbers = torch.as_tensor(numbers, dtype=torch.int64)
        self.length, self.width = len(self.numbers), rows.width
        self.floating, self.in_file = rows.floating, rows.in_file

    def span(self, start: int, stop: int) -> Tensor:
        """Gathered."""
        return self.rows.select(self.numbers[start:stop])

    def select(self, rows: Tensor) -> Tensor:
        """Gathered."""
        return self.rows.select(self.numbers.index_select(0, rows))


def map_rows(function: Callable[[Rows], Any], tree: Any) -> Any:
    """The tree of `as_rows` with ``function`` applied to each array."""
    if isinstance(tree, Mapping):
        return {key: map_rows(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_rows(function, value) for value in tree)
    return function(tree)


def as_rows(data: Any, found: dict[str, Rows], name: str = "data") -> Any:
    """A tree of `Rows` for a tree of arrays; each is entered in ``found`` by its name.

    Raises:
        DataError: something that is no array of numbers with data points.
    """
    if isinstance(data, Mapping):
        return {key: as_rows(value, found, f"{name}[{key!r}]") for key, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(as_rows(value, found, f"{name}[{i}]") for i, value in enumerate(data))
    if type(data).__name__ == "safe_open":
        return {key: as_rows(data.get_slice(key), found, f"{name}[{key!r}]") for key in data.keys()}
    if type(data).__name__ == "PySafeSlice":
        data = _mapped_by_torch(data, name)
    if isinstance(data, np.ma.MaskedArray):
        raise DataError(
            f"{name}: found a masked array, whose mask would be lost; pass its values and its mask "
            "as two arrays, (a.filled(0), ~a.mask), and observe with obs_mask= or poutine.mask"
        )
    numeric = isinstance(data, np.ndarray) and data.dtype.kind in "fiub"
    if not numeric and not isinstance(data, Tensor):
        raise DataError(
            f"{name}: found {_kind(data)}; expected a tensor, a numeric numpy array, a tuple or "
            f"dict of those, a Dataset or a DataLoader{_how_to_convert(data)}"
        )
    if data.ndim == 0:
        raise DataError(f"{name} is a single number: expected data points along the first dim")
    if isinstance(data, Tensor):
        found[name] = InMemory(_constant(data, name))
    else:
        found[name] = Mapped(data) if is_mapped(data) else InMemory(_as_tensor(data))
    return found[name]


def _constant(data: Tensor, name: str) -> Tensor:
    """A tensor as data: without the graph that it may come with, which is used up after a step."""
    if data.layout != torch.strided:
        kind = str(data.layout).removeprefix("torch.")
        raise DataError(
            f"{name}: found a {kind} tensor, of which rows cannot be taken; pass it .to_dense(), "
            "or a Dataset that makes each row dense when its turn comes"
        )
    if data.requires_grad:
        warnings.warn(
            f"{name}: it requires a gradient, and data are constants: nothing learns from it; pass "
            "x.detach(), and make what is to be learned inside the programs",
            CheckWarning,
            stacklevel=2,
        )
    return data.detach()


def is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array, or what it is a view of, is a mapped file.

    >>> is_mapped(np.zeros(3)[1:])
    False
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    if isinstance(owner, memoryview):  # np.frombuffer
        owner = owner.obj
    return isinstance(owner, mmap.mmap)


def non_finite(source: Rows) -> Iterator[int]:
    """Numbers of the rows with a NaN or an infinity, piece by piece.

    An array in memory is searched as a whole; of a larger file 256 MiB, evenly spread over it.
    """
    if not source.floating:
        return
    for start, stop in _pieces(source):
        piece = source.span(start, stop)
        # one pass without a copy; a sum that overflows only costs the second look
        if not bool(piece.sum().isfinite()):
            bad = ~piece.isfinite().reshape(len(piece), -1).all(1)
            yield from (bad.nonzero().flatten() + start).tolist()


def _pieces(source: Rows) -> Iterator[tuple[int, int]]:
    rows = max(1, _AT_ONCE // max(1, source.width))
    count = -(-source.length // rows)
    most = max(2, _OF_A_FILE // (rows * max(1, source.width)))
    if not source.in_file or count <= most:
        chosen = iter(range(count))
    else:
        chosen = (number * (count - 1) // (most - 1) for number in range(most))
    for number in chosen:
        yield number * rows, min(source.length, (number + 1) * rows)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The nearest type that torch can hold: of this machine's byte order, at most 64 bits."""
    return np.dtype(np.float64) if dtype.char == "g" else dtype.newbyteorder("=")


def _tensor_dtype(dtype: np.dtype[Any]) -> torch.dtype | None:
    """Torch's default for floating numbers; others keep theirs."""
    return torch.get_default_dtype() if dtype.kind == "f" else None


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    # A copy where torch could only borrow with a warning or not at all.
    ready = np.require(array, dtype=_native(array.dtype), requirements=["C", "W"])
    return torch.as_tensor(ready, dtype=_tensor_dtype(array.dtype))


def _mapped_by_torch(part: Any, name: str) -> Any:
    """A tensor over the file, of a slice that safetensors opened for torch."""
    if not part.get_shape():
        return torch.zeros(())
    if not isinstance(part[:0], Tensor):
        raise DataError(
            f"{name}: found a safetensors file opened for numpy, which reads a tensor as a whole; "
            "expected one that is mapped; pass am.open_safetensors(path)"
        )
    return part[:]


def _kind(data: Any) -> str:
    return f"an array of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__


def _how_to_convert(data: Any) -> str:
    """What to do with kinds that people do have."""
    if isinstance(data, np.ndarray):
        if data.dtype.names:
            return f"; pass its fields, {{name: data[name] for name in {data.dtype.names}}}"
        if data.dtype.kind == "c":
            return "; pass .real and .imag"
        if data.dtype.kind in "mM":
            return "; pass a number, such as days since some date"
        return "; give every category a number"
    if callable(getattr(data, "to_numpy", None)):
        return "; pass its numbers, .to_numpy()"
    if isinstance(data, Iterator):
        return "; an iterator is used up after one epoch, wrap what makes it in a DataLoader"
    return ""
