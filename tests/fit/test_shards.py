"""The parts of processes make the batches of a single one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from amortized.errors import CheckWarning, DataError
from amortized.fit.data import Batches, as_batches
from amortized.fit.distributed import Group
from amortized.fit.shards import NO_ROWS, first_batch, rows_in, sharded, whole, without_end

X = torch.arange(37.0)


class Items(Dataset[Tensor]):
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Tensor:
        self.asked.append(row)
        return X[row]


def passes(batches: Batches, count: int = 2) -> list[list[Tensor | None]]:
    generator = torch.Generator().manual_seed(3)
    epochs = (batches.epoch(generator) for _ in range(count))
    return [[batch if rows_in(batch) else None for batch in epoch] for epoch in epochs]


@pytest.mark.parametrize("size", [2, 3, 4, 9])
@pytest.mark.parametrize("kind", ["tensor", "items"])
def test_parts_make_the_batches_of_one_process(size: int, kind: str) -> None:
    data = X if kind == "tensor" else Items()
    lone = passes(as_batches(data, 8))
    parts = [passes(sharded(as_batches(data, 8), Group(rank, size))) for rank in range(size)]
    for epoch, batches in enumerate(lone):
        for number, batch in enumerate(batches):
            found = [part[epoch][number] for part in parts]
            rows = [0 if part is None else len(part) for part in found]
            assert max(rows) - min(rows) <= 1
            together = torch.cat([part for part in found if part is not None])
            assert batch is not None and torch.equal(together, batch)


def test_a_batch_of_fewer_rows_than_processes() -> None:
    parts = sharded(as_batches(torch.arange(9.0), 8), Group(1, 2))
    assert [rows_in(batch) for batch in parts.epoch()] == [4, 0]
    assert list(parts.epoch())[1] is NO_ROWS
    assert repr(NO_ROWS) == "NO_ROWS"


def test_only_own_rows_are_made() -> None:
    items = Items()
    list(sharded(as_batches(items, 8), Group(1, 2)).epoch())
    assert sorted(items.asked) == [row for row in range(37) if row % 8 >= 4 or row >= 35]


def test_only_own_rows_of_a_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    parts = sharded(as_batches(np.load(tmp_path / "x.npy", mmap_mode="r"), 8), Group(0, 2))
    read: list[int] = []
    select = type(parts.whole.tree).select  # pyright: ignore[reportAttributeAccessIssue]

    def counted(self: object, rows: Tensor) -> Tensor:
        read.extend(rows.tolist())
        return select(self, rows)

    monkeypatch.setattr("amortized.fit.sources.Mapped.select", counted)
    list(parts.epoch(torch.Generator()))
    assert len(read) == 19 == len(set(read))


def test_what_is_asked_of_all_data() -> None:
    x = X.clone()
    x[[3, 30]] = float("nan")
    parts = sharded(as_batches(x, 8), Group(1, 2))
    assert parts.non_finite_rows() == [3, 30] and parts.size == 37 and parts.num_batches == 5
    assert len(parts.peek()) == 8 and parts.rows_asked() == 8
    assert parts.numbers(1) == [4, 5, 6, 7]
    assert parts.rows([1, 2]).tolist() == [1, 2]
    assert whole(parts).size == 37 and sharded(parts, Group(1, 2)) is parts
    order = torch.Generator().manual_seed(1)
    first = first_batch(parts, NO_ROWS, order)
    lone = next(as_batches(x, 8).epoch(torch.Generator().manual_seed(1)))
    assert torch.equal(first.nan_to_num(), lone.nan_to_num())


def test_alone_batches_are_as_they_are() -> None:
    batches = as_batches(X, 8)
    assert sharded(batches, Group()) is batches
    nothing = as_batches(())
    assert sharded(nothing, Group(0, 2)) is nothing


@pytest.fixture
def longer_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "gathered", lambda self, value: [value, 7])


@pytest.mark.usefixtures("longer_elsewhere")
def test_a_loader_is_the_users_own() -> None:
    loader = DataLoader(TensorDataset(X), 10)
    with pytest.warns(
        CheckWarning, match=r"passes over all .*, 37 of them.*DistributedSampler\(dataset\)"
    ):
        own = sharded(as_batches(loader), Group(0, 2))
    assert own.num_batches == 7 and own.size == 37 and len(list(own.epoch())) == 4
    sharded(as_batches(loader), Group(1, 2))  # one process warns for all
    with pytest.raises(DataError, match="no batch at all"):
        first_batch(own, NO_ROWS, torch.Generator())
    assert first_batch(own, X, torch.Generator()) is X
    assert own.generators() == []


@pytest.mark.usefixtures("longer_elsewhere")
def test_a_distributed_sampler_shuffles_anew_each_time() -> None:
    data = TensorDataset(X)
    loader = DataLoader(data, 10, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.warns(CheckWarning, match="of 37 rows for 2 processes repeats 1 of them"):
        own = sharded(as_batches(loader), Group(0, 2))
    assert own.size == 37
    first, second = passes(own)
    rows = [torch.cat([batch[0] for batch in found if batch]) for found in (first, second)]
    assert not torch.equal(*rows)
    again = passes(own)[0]
    assert torch.equal(rows[0], torch.cat([batch[0] for batch in again if batch]))


def test_after_an_error_there_are_no_more_rows() -> None:
    errors: list[Exception] = []

    def broken() -> Iterator[Tensor]:
        yield X
        raise OSError("no such file")

    found = list(itertools.islice(without_end(broken(), errors.append), 4))
    assert found[0] is X and found[1:] == [NO_ROWS] * 3
    assert [str(error) for error in errors] == ["no such file"]
