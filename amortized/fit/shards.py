"""The part of every batch that belongs to one of several processes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, cast, final

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler

from amortized.errors import CheckWarning, DataError
from amortized.fit.data import (
    Batches,
    DatasetBatches,
    LoaderBatches,
    TensorBatches,
    batch_length,
    map_tensors,
)
from amortized.fit.distributed import Group
from amortized.fit.rng import preserved_rng


@final
class NoRows:
    """In the place of a batch of which this process has no row."""

    def __repr__(self) -> str:
        """As the constant."""
        return "NO_ROWS"


NO_ROWS: Final = NoRows()


@final
class ShardedBatches(Batches):
    """One part of each batch of data that every process can see: only its rows are read.

    Batches are those of a single process, in one order for all, cut as ``torch.tensor_split`` does.
    """

    def __init__(self, whole: TensorBatches | DatasetBatches, group: Group) -> None:
        self.whole, self.group = whole, group
        self.size, self.num_batches = whole.size, whole.num_batches

    def rows_asked(self) -> int | None:
        """Of a whole batch."""
        return self.whole.rows_asked()

    def peek(self, rows: int | None = None) -> Any:
        """Of a whole batch: what is found of it is the same in every process."""
        return self.whole.peek(rows)

    def non_finite_rows(self) -> list[int]:
        """Of all data."""
        return self.whole.non_finite_rows()

    def rows(self, numbers: list[int]) -> Any:
        """Of all data."""
        return self.whole.rows(numbers)

    def numbers(self, batch: int, generator: torch.Generator | None = None) -> list[int] | None:
        """Of this process's rows."""
        whole = self.whole.numbers(batch, generator)
        return None if whole is None else whole[self._mine(0, len(whole))]

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """Its parts; `NO_ROWS` for a batch of fewer rows than processes."""
        size, rows = cast(int, self.size), self.whole.batch_size
        parts = [self._mine(at, min(size, at + rows)) for at in range(0, size, rows)]
        if isinstance(self.whole, TensorBatches):
            found = self.whole.slices([part for part in parts if _length(part)], generator)
        else:
            found = _items(self.whole, parts, generator)
        for part in parts:
            yield next(found) if _length(part) else NO_ROWS

    def _mine(self, start: int, stop: int) -> slice:
        """Those of rows ``start`` to ``stop`` that are this process's."""
        each, more = divmod(stop - start, self.group.size)
        before = start + self.group.rank * each + min(self.group.rank, more)
        return slice(before, before + each + (self.group.rank < more))


@final
class OwnBatches(Batches):
    """A user's DataLoader: its batches are this process's part of batches of all.

    A loader may be shorter than another: the length of a pass is that of the longest.
    """

    def __init__(self, own: LoaderBatches, group: Group) -> None:
        self.own = own
        inner = getattr(own.loader.batch_sampler, "sampler", None)
        samplers = (s for s in (own.loader.sampler, inner) if isinstance(s, DistributedSampler))
        self._sampler = next(samplers, None)
        lengths = group.gathered(own.num_batches)
        known = [length for length in lengths if length is not None]
        self.num_batches = max(known) if len(known) == len(lengths) else None
        self.size = own.size
        if self._sampler is not None:
            dataset: Any = self._sampler.dataset
            self.size = len(dataset)
            if group.writes:
                _warn_of_repeated_rows(self._sampler, len(dataset))
        elif group.writes:
            _warn_of_same_rows(own, group.size)

    def generators(self) -> list[torch.Generator]:
        """Of this process."""
        return self.own.generators()

    def epoch(self, generator: torch.Generator | None = None) -> Iterator[Any]:
        """Its own batches; a distributed sampler is told of the pass, so that it shuffles anew."""
        if self._sampler is not None and generator is not None:
            self._sampler.set_epoch(int(torch.randint(2**31, (), generator=generator)))
        return self.own.epoch(generator)


def sharded(batches: Batches, group: Group) -> Batches:
    """What one of several processes takes of data; alone, everything."""
    if group.alone or isinstance(batches, ShardedBatches | OwnBatches):
        return batches
    if isinstance(batches, TensorBatches | DatasetBatches):
        return ShardedBatches(batches, group)
    if isinstance(batches, LoaderBatches):
        return OwnBatches(batches, group)
    return batches  # a program without arguments: each process draws


def whole(batches: Batches) -> Batches:
    """All rows, where every process can see them: what parameters are declared with."""
    return batches.whole if isinstance(batches, ShardedBatches) else batches


def first_batch(batches: Batches, own: Any, generator: torch.Generator) -> Any:
    """What parameters are declared with: the first batch of a pass, with the rows of all.

    Args:
        batches: the data.
        own: the part that this process has of it.
        generator: in the state that decides the order of the pass.

    Raises:
        DataError: there is none.
    """
    if isinstance(batches, ShardedBatches):
        with preserved_rng():
            return next(batches.whole.epoch(generator))
    if isinstance(own, NoRows):
        raise DataError("this process has no batch at all: expected at least one in each")
    return own


def without_end(batches: Iterator[Any], failed: Callable[[Exception], None]) -> Iterator[Any]:
    """The batches, then `NO_ROWS` for ever: the other processes may have more.

    An error of the data is kept, for all processes to hear of it at the end of the step.
    """
    try:
        yield from batches
    except Exception as error:
        failed(error)
    yield from itertools.repeat(NO_ROWS)


def rows_in(batch: Any) -> int:
    """Data points of a batch, or of the lack of one."""
    return 0 if isinstance(batch, NoRows) else batch_length(batch)


def _length(part: slice) -> int:
    return part.stop - part.start


def _items(
    whole: DatasetBatches, parts: list[slice], generator: torch.Generator | None
) -> Iterator[Any]:
    """Collated batches of these places in the order of a pass."""
    size = cast(int, whole.size)
    if generator is None:
        order = list(range(size))
    else:
        # as a loader asks it: for a seed of its workers, then for the order
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        order = list(RandomSampler(range(size), generator=generator))
    mine = [order[part] for part in parts if _length(part)]
    loader = DataLoader(
        whole.dataset, batch_sampler=cast(Sampler[list[int]], mine), generator=torch.Generator()
    )
    for batch in loader:
        yield map_tensors(lambda tensor: tensor, batch)


def _warn_of_repeated_rows(sampler: DistributedSampler[Any], size: int) -> None:
    repeated = sampler.total_size - size
    if repeated > 0:
        warnings.warn(
            f"a DistributedSampler of {size} rows for {sampler.num_replicas} processes repeats "
            f"{repeated} of them in each pass, which then count twice, in held-out numbers too; "
            "pass the data set or its tensors themselves: they are cut without repeating any",
            CheckWarning,
            stacklevel=2,
        )


def _warn_of_same_rows(own: LoaderBatches, processes: int) -> None:
    count = "" if own.size is None else f", {own.size} of them"
    warnings.warn(
        f"a DataLoader without a DistributedSampler among {processes} processes: each of them "
        f"passes over all data points of its own loader{count}; give it "
        "sampler=torch.utils.data.DistributedSampler(dataset), or pass the tensors or the data set "
        "themselves; if each process has a shard of its own, say how many data there are in all: "
        "SVI(..., data_plate=am.DataPlate(name, N))",
        CheckWarning,
        stacklevel=2,
    )
