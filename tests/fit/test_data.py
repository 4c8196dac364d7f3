import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
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

import amortized as am
from amortized.errors import UsageError
from amortized.fit.data import as_batches, batch_length
from tests.fit import tiny


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


def test_a_split_shares_the_memory_of_the_whole() -> None:
    x = torch.arange(10.0)
    part, _ = random_split(TensorDataset(x), [6, 4], generator=generator())
    batches = as_batches(part, 6)
    x.neg_()
    assert torch.equal(next(batches.epoch())[0], x[part.indices])
    found = next(batches.epoch(generator()))[0]
    assert sorted(found.tolist()) == sorted(x[part.indices].tolist())


def test_the_order_is_that_of_a_permutation_of_torch() -> None:
    found = torch.cat(list(as_batches(torch.arange(100), 7).epoch(generator(3))))
    after = generator(3)
    assert torch.equal(found, torch.randperm(100, generator=after))
    ours = generator(3)
    list(as_batches(torch.arange(100), 7).epoch(ours))
    assert torch.equal(ours.get_state(), after.get_state())


def test_a_file_larger_than_memory_is_read_by_rows(tmp_path: Path) -> None:
    rows, width = 2**18, 2**18  # 256 GiB, of which the file system stores nothing
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 * rows * width)
    x = np.memmap(path, np.float32, "r", shape=(rows, width))
    batches = as_batches({"x": x, "y": np.arange(rows)}, 2)
    assert batches.size == rows
    for epoch in (batches.epoch(), batches.epoch(generator())):
        batch = next(epoch)
        assert batch["x"].shape == (2, width) and batch["x"].dtype == torch.float32
    assert batches.peek(1)["x"].shape == (1, width)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_training_on_a_file_is_training_on_its_numbers(mode: str, tmp_path: Path) -> None:
    x = tiny.data(40).float()
    path = tmp_path / "x"
    x.numpy().tofile(path)
    histories = []
    for data in (x, np.memmap(path, np.float32, mode)):
        svi = am.SVI(tiny.local_model, tiny.param_guide, lr=0.1)
        found = svi.fit(data, data[:8], max_epochs=2, batch_size=16, seed=0, progress=False)
        histories.append((found["train_loss"], found["val_loss"], svi.evaluate(data, seed=1)))
    assert histories[0] == histories[1]


def test_not_finite_rows_of_a_file_are_named_before_training(tmp_path: Path) -> None:
    x = tiny.data(40).float()
    x[33] = float("nan")
    x.numpy().tofile(tmp_path / "x")
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    with pytest.raises(UsageError, match="NaN or infinity in row 33 of the data set"):
        data = np.memmap(tmp_path / "x", np.float32, "r")
        svi.fit(data, max_epochs=1, batch_size=16, progress=False)


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


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/data.md, block {number}", "exec"), names)
    assert number == 2


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
        ({"x": torch.zeros(0)}, 2, "the data set is empty"),
    ],
)
def test_mistakes_are_named(data: object, batch_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_batches(data, batch_size)


def test_an_empty_loader_is_named() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(2)), batch_size=3, drop_last=True)
    with pytest.raises(UsageError, match="gave no batch"):
        list(as_batches(loader).epoch())


def test_a_program_that_writes_into_its_batch_leaves_all_data_alone() -> None:
    def model(x: torch.Tensor) -> None:
        x.mul_(2.0)
        tiny.local_model(x)

    def guide(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    train, val, test = (tiny.data(size).clone() for size in (20, 12, 12))
    before = [x.clone() for x in (train, val, test)]
    svi = am.SVI(model, guide)
    svi.fit(train, val, max_epochs=2, batch_size=8, check=False, progress=False)
    svi.evaluate(test, num_particles=3)
    assert all(torch.equal(x, then) for x, then in zip((train, val, test), before, strict=True))


class Torn(Dataset):
    """Its last row cannot be read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 39:
            raise OSError("input/output error")
        return torch.tensor(0.5)


@pytest.mark.parametrize("batch_size", [40, 16])
def test_a_data_set_that_raises_is_named_where_it_does(batch_size: int) -> None:
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    # a look at the first rows, at a short last batch, or in training
    with pytest.raises(UsageError, match="could not be read: OSError: input/output") as caught:
        svi.fit(Torn(), max_epochs=1, batch_size=batch_size, progress=False, seed=0)
    begin = "train, before the first step: batch 1" if batch_size == 40 else "epoch 1, batch"
    assert str(caught.value).startswith(begin)
