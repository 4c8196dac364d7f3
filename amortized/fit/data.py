"""Data of every common kind as batches: arrays are gathered by rows, a DataLoader is left alone."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from amortized.errors import AmortizedError, DataError
from amortized.fit.arguments import refuse_no_count
from amortized.fit.sources import Picked, Rows, as_rows, map_rows, non_finite
from amortized.programs.batches import leaves_of

_NO_BATCH = (
    "the DataLoader gave no batch: expected at least one in every pass; with drop_last=True the "
    "data set must be at least as large as a batch"
)


class Batches(ABC):
    """A data set that can be passed over in batches, again and again.

    Attributes:
        size: data points in one pass, or None where nobody knows.
        num_batches: batches in one pass, or None where nobody knows.
    """

    size: int | None
    num_batches: int | None

    def rows_asked(self) -> int | None:
        """Rows in a batch, where that is not the loader's affair."""
        return None

    def generators(self) -> list[torch.Generator]:
        """Generators of the user's own that decide the order of a pass."""
        return []

    def peek(self, rows: int | None = None) -> Any:
        """The first rows in order, a batch or so many; None where looking uses them up."""
        return None

    def non_finite_rows(self) -> list[int]:
        """Data points with a NaN or an infinity, where the data are at hand to be searched."""
        return []

    def rows(self, numbers: list[int]) -> Any:
        """A batch of certain data points; only where `non_finite_rows` found some."""
        raise NotImplementedError

    def numbers(self, batch: int, generator: torch.Generator | None = None) -> list[int] | None:
        """Which data points a batch of a pass holds; None where nobody knows.

        Args:
            batch: its place in the pass, from 1.
            generator: in the state from which the pass was shuffled; None: it was in order.
        """
        return None

    @abstractmethod
    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """One pass; shuffled by ``generator``, in order without one."""


@final
class TensorBatches(Batches):
    """Arrays in memory or in mapped files: no collation of single items."""

    def __init__(self, data: Any, batch_size: int, among: Sequence[int] | None = None) -> None:
        """``among``: the rows that count, by number; None: all."""
        arrays: dict[str, Rows] = {}
        self.tree = as_rows(data, arrays)
        lengths = {name: rows.length for name, rows in arrays.items()}
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise DataError(
                f"data of unequal lengths: {sizes}; the first dim of each tensor counts data points"
            )
        if among is not None:
            self.tree = map_rows(lambda rows: Picked(rows, among), self.tree)
        self.batch_size = batch_size
        self.size = next(iter(lengths.values())) if among is None else len(among)
        if self.size == 0:
            raise DataError("the data set is empty: expected at least one data point")
        self.num_batches = -(-self.size // batch_size)

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """Batches of ``batch_size``; the last may be shorter and is never dropped."""
        size = cast(int, self.size)
        starts = range(0, size, self.batch_size)
        parts = (slice(start, min(size, start + self.batch_size)) for start in starts)
        return self.slices(parts, generator)

    def slices(
        self, parts: Iterable[slice], generator: torch.Generator | None = None
    ) -> Iterator[Any]:
        """These places in the order of a pass, and no other row is read."""
        order = None if generator is None else _permutation(cast(int, self.size), generator)
        for part in parts:
            yield self._span(part.start, part.stop) if order is None else self._select(order[part])

    def rows_asked(self) -> int | None:
        """As given."""
        return self.batch_size

    def peek(self, rows: int | None = None) -> Any:
        """A slice."""
        return self._span(0, min(cast(int, self.size), rows or self.batch_size))

    def non_finite_rows(self) -> list[int]:
        """Found piece by piece; large files are sampled, see `sources.non_finite`."""
        found: set[int] = set()
        map_rows(lambda rows: found.update(non_finite(rows)), self.tree)
        return sorted(found)

    def rows(self, numbers: list[int]) -> Any:
        """Gathered."""
        return self._select(torch.tensor(numbers))

    def numbers(self, batch: int, generator: torch.Generator | None = None) -> list[int]:
        """From the same permutation."""
        size = cast(int, self.size)
        order = torch.arange(size) if generator is None else _permutation(size, generator)
        return order[(batch - 1) * self.batch_size : batch * self.batch_size].tolist()

    def _span(self, start: int, stop: int) -> Any:
        return map_rows(lambda rows: rows.batch(start, stop), self.tree)

    def _select(self, numbers: Tensor) -> Any:
        return map_rows(lambda rows: rows.select(numbers), self.tree)


@final
class LoaderBatches(Batches):
    """The user's DataLoader, as it is."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        # Of the sampler, which may see only a part of the data set.
        self.size = _len(loader.sampler)
        self.num_batches = _len(loader)
        if self.num_batches == 0:
            raise DataError(_NO_BATCH)

    def generators(self) -> list[torch.Generator]:
        """Those of the loader and of its samplers."""
        batches = getattr(self.loader, "batch_sampler", None)
        holders = (self.loader, self.loader.sampler, batches, getattr(batches, "sampler", None))
        found = {id(g): g for h in holders if (g := getattr(h, "generator", None)) is not None}
        return list(found.values())

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """The loader's own batches: its size and its shuffling are its own affair."""
        found = False
        for batch in self.loader:
            found = True
            yield map_tensors(lambda tensor: tensor, batch)
        if not found:
            raise DataError(_NO_BATCH)


@final
class DatasetBatches(Batches):
    """A map-style Dataset, through a DataLoader of our own whose order comes from our generator."""

    def __init__(self, dataset: Dataset[Any], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.size = _len(dataset)
        if not self.size:
            raise DataError("the data set is empty or has no length: expected a map-style Dataset")
        self.num_batches = -(-self.size // batch_size)

    def rows_asked(self) -> int | None:
        """As given."""
        return self.batch_size

    def peek(self, rows: int | None = None) -> Any:
        """Collated; items are made again when their turn comes."""
        return next(DatasetBatches(self.dataset, rows or self.batch_size).epoch())

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """Batches of ``batch_size``; the last may be shorter and is never dropped."""
        # A loader draws a seed from the global stream at each pass unless it has a generator.
        loader = DataLoader(
            self.dataset,
            self.batch_size,
            shuffle=generator is not None,
            generator=torch.Generator() if generator is None else generator,
        )
        for batch in loader:
            yield map_tensors(lambda tensor: tensor, batch)


@final
class NoArguments(Batches):
    """A program without arguments: one empty batch a pass."""

    def __init__(self) -> None:
        self.size = None
        self.num_batches = 1

    def peek(self, rows: int | None = None) -> Any:
        """The empty batch."""
        return ()

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """The empty batch."""
        yield ()


def guarded(batches: Iterator[Any], place: str) -> Iterator[Any]:
    """The same batches; an error of the user's data says where training stood.

    Raises:
        DataError: naming the place and the number of the batch.
    """
    for number in itertools.count(1):
        try:
            batch = next(batches)
        except StopIteration:
            return
        except AmortizedError:
            raise
        except Exception as error:
            raise DataError(
                f"{place} {number}: the data could not be read: {type(error).__name__}: {error}; "
                "parameters are as the last step left them"
            ) from error
        yield batch


def peeked(batches: Batches, name: str, rows: int | None = None) -> Any:
    """What `Batches.peek` gives.

    Raises:
        DataError: instead of what the user's data raise.
    """
    return next(guarded(map(batches.peek, [rows]), f"{name}, before the first step: batch"))


def as_batches(data: Any, batch_size: int = 128) -> Batches:
    """Data of any common kind, as batches.

    A tensor, a numpy array, a tuple or dict of those, and a ``TensorDataset`` are sliced. Another
    ``Dataset`` is collated by a DataLoader. A DataLoader keeps its own batch size and order.
    Floating numpy arrays take torch's default dtype. Mapped files (``np.memmap``,
    `open_safetensors`) are read row by row, when a row's turn comes. ``()`` is for programs without
    arguments.

    Raises:
        UsageError: data of another kind, empty, of unequal lengths, or ``batch_size`` below 1.

    >>> batches = as_batches({"x": torch.arange(5.0), "y": torch.zeros(5, 2)}, batch_size=3)
    >>> [tuple(batch["y"].shape) for batch in batches.epoch()], batches.size
    ([(3, 2), (2, 2)], 5)
    """
    refuse_no_count("batch_size", batch_size)
    if isinstance(data, Batches):
        return data
    if isinstance(data, DataLoader):
        return LoaderBatches(data)
    if isinstance(data, Subset) and isinstance(data.dataset, TensorDataset):
        return TensorBatches(data.dataset.tensors, batch_size, data.indices)
    if isinstance(data, TensorDataset):
        return TensorBatches(data.tensors, batch_size)
    if isinstance(data, IterableDataset):
        return LoaderBatches(DataLoader(data, batch_size))
    if isinstance(data, Dataset):
        return DatasetBatches(data, batch_size)
    if isinstance(data, tuple | list | dict) and not data:
        return NoArguments()
    return TensorBatches(data, batch_size)


def first_batch(data: Any, batch_size: int = 128) -> Any:
    """The first batch of data of any common kind."""
    return next(as_batches(data, batch_size).epoch())


def batch_length(batch: Any) -> int:
    """The number of data points in a batch: the first dim of its first tensor, or 1."""
    for tensor in leaves_of(batch).values():
        if tensor.ndim:
            return tensor.shape[0]
    return 1


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with ``function`` applied to its tensors; lists become tuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(map_tensors(function, value) for value in tree)
    return tree


def structure_of(batch: Any) -> str:
    """The shape of a batch as arguments: the same for training and validation data.

    >>> structure_of((torch.zeros(2), {"y": torch.ones(2, 3)}))
    '(tensor, {y: tensor})'
    """
    if isinstance(batch, Tensor):
        return "tensor"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {structure_of(batch[key])}" for key in batch) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(map(structure_of, batch)) + ")"
    return type(batch).__name__


def _permutation(size: int, generator: torch.Generator) -> Tensor:
    """The same order in half the memory: the generator is asked for the same numbers."""
    dtype = torch.int32 if size < 2**31 else torch.int64
    return torch.randperm(size, generator=generator, dtype=dtype)


def _len(sized: Any) -> int | None:
    """The length, where there is one: loaders over streams raise TypeError."""
    try:
        return len(sized)
    except TypeError:
        return None
