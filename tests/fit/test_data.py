from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from amortized.errors import UsageError
from amortized.fit.data import as_batches, batch_length


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "data",
    [
        torch.arange(10.0),
        np.arange(10, dtype=np.float32),
        TensorDataset(torch.arange(10.0)),
        {"x": torch.arange(10.0)},
        (torch.arange(10.0), np.ones((10, 2))),
        [torch.arange(10.0)],
    ],
    ids=["tensor", "numpy", "dataset", "dict", "tuple", "list"],
)
def test_every_kind_is_sliced_with_a_short_last_batch(data: object) -> None:
    batches = as_batches(data, 4)
    assert (batches.size, batches.num_batches) == (10, 3)
    found = list(batches.epoch())
    assert [batch_length(batch) for batch in found] == [4, 4, 2]
    assert type(found[0]) is {TensorDataset: tuple, list: tuple, np.ndarray: torch.Tensor}.get(
        type(data), type(data)
    )


def test_shuffling_keeps_rows_together_and_follows_the_generator() -> None:
    x = torch.arange(50)
    batches = as_batches({"x": x, "y": 2 * x}, 7)
    first, again, other = (list(batches.epoch(generator(seed))) for seed in (1, 1, 2))
    for batch in first:
        assert torch.equal(batch["y"], 2 * batch["x"])
    order, same, different = (torch.cat([b["x"] for b in e]) for e in (first, again, other))
    assert torch.equal(order.sort().values, x) and not torch.equal(order, x)
    assert torch.equal(order, same) and not torch.equal(order, different)


def test_the_global_stream_does_not_move() -> None:
    before = torch.get_rng_state()
    for data in (torch.zeros(8), Squares()):
        list(as_batches(data, 3).epoch(generator()))
        list(as_batches(data, 3).epoch())
    assert torch.equal(before, torch.get_rng_state())


class Squares(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index**2


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(5.0))


def test_a_dataset_is_collated() -> None:
    batches = as_batches(Squares(), 3)
    found = list(batches.epoch(generator()))
    assert batches.size == 8 and [len(b[0]) for b in found] == [3, 3, 2]
    assert all(torch.equal(b[0] ** 2, b[1]) for b in found)


def test_a_split_of_tensors_is_sliced() -> None:
    x = torch.arange(10.0)
    part, _ = random_split(TensorDataset(x), [6, 4], generator=generator())
    batches = as_batches(part, 4)
    rows = torch.cat([batch[0] for batch in batches.epoch()])
    assert batches.size == 6 and torch.equal(rows, x[part.indices])


def test_a_loader_keeps_its_batch_size_and_its_own_size() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)), batch_size=5)
    batches = as_batches(loader, 3)
    assert (batches.size, batches.num_batches) == (10, 2)
    assert [type(b) for b in batches.epoch(generator())] == [tuple, tuple]
    part = DataLoader(Squares(), batch_size=2, sampler=SubsetRandomSampler([0, 1, 2]))
    assert as_batches(part).size == 3


def test_a_stream_has_no_size() -> None:
    batches = as_batches(Stream(), 2)
    assert batches.size is None
    assert [len(b) for b in batches.epoch()] == [2, 2, 1]


def test_no_arguments_are_one_empty_batch() -> None:
    assert list(as_batches(()).epoch()) == [()] and batch_length(()) == 1


def test_numpy_takes_the_default_float_and_keeps_integers() -> None:
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    x, y = next(as_batches((frozen, np.arange(4)), 4).epoch())
    assert x.dtype == torch.get_default_dtype() and y.dtype == torch.int64


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, 2, r"data\['x'\] has 3, data\['y'\] has 4"),
        (torch.zeros(0, 3), 2, "the data set is empty"),
        (torch.tensor(1.0), 2, "a single number"),
        (torch.zeros(3), 0, "batch_size=0"),
        ("abc", 2, "found str; expected a tensor"),
        ((torch.zeros(3), [1, 2, 3]), 2, r"data\[1\]\[0\]: found int"),
        (np.array(["a"]), 2, "found an array of <U1"),
    ],
)
def test_mistakes_are_named(data: object, batch_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_batches(data, batch_size)


def test_an_empty_loader_is_named() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(2)), batch_size=3, drop_last=True)
    with pytest.raises(UsageError, match="gave no batch"):
        list(as_batches(loader).epoch())
