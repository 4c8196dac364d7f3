"""Indices of whole plates: numbers where they are iterated over, tensors everywhere else."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import amortized as am
from amortized.programs.indices import AllIndices, all_indices
from tests.fit import tiny


def made(size: int = 3) -> Tensor:
    found = all_indices(_Subsample(size, None))
    assert found is not None
    return found


def test_are_the_indices_of_pyro() -> None:
    plain = _Subsample(5, None).sample(torch.Size())
    indices = made(5)
    assert torch.equal(indices, plain) and indices.dtype is plain.dtype is torch.long
    assert indices.device == plain.device and indices.shape == plain.shape
    assert isinstance(indices, AllIndices) and isinstance(indices, Tensor)


def test_an_empty_plate() -> None:
    assert list(made(0)) == [] and made(0).shape == (0,)


def test_iteration_gives_numbers() -> None:
    found = list(made())
    assert found == [0, 1, 2] and all(type(index) is int for index in found)
    assert [type(i) for i, _ in zip(made(), "abc", strict=True)] == [int] * 3
    assert list(enumerate(made(2))) == [(0, 0), (1, 1)]
    assert sorted(made(), reverse=True) == [2, 1, 0] and tuple(made(2)) == (0, 1)


def test_iteration_reads_no_value() -> None:
    """That is what it is for: a capture can go through a loop over a plate."""

    def step(x: Tensor) -> list[Tensor]:
        return [sum((x * (1 + index) for index in made()), start=x)]

    graph = make_fx(step)(torch.ones(2))
    assert torch.equal(graph(torch.ones(2))[0], torch.full((2,), 7.0))


COMPUTED: dict[str, Any] = {
    "an element": lambda i: i[1],
    "a part": lambda i: i[1:],
    "by a mask": lambda i: i[torch.tensor([True, False, True])],
    "by indices": lambda i: i[torch.tensor([2, 0])],
    "added": lambda i: i + 1,
    "from the right": lambda i: 1 - i,
    "a float": lambda i: i * 0.5,
    "in float": lambda i: i.float(),
    "in double": lambda i: i.to(torch.float64),
    "a comparison": lambda i: i == 1,
    "a matrix": lambda i: i.unsqueeze(-1) * i,
    "a view": lambda i: i.view(3, 1),
    "a clone": lambda i: i.clone(),
    "detached": lambda i: i.detach(),
    "like it": torch.zeros_like,
    "new": lambda i: i.new_zeros(2),
    "stacked": lambda i: torch.stack([i, i]),
    "one hot": lambda i: torch.nn.functional.one_hot(i, 4),
    "a sum": torch.sum,
    "the largest": lambda i: i.max(),
    "with another tensor": lambda i: torch.tensor([0.5, 1.5, 2.5]) + i,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_is_a_plain_tensor(name: str) -> None:
    function = COMPUTED[name]
    found, wanted = function(made()), function(torch.arange(3))
    assert type(found) is Tensor
    assert torch.equal(found, wanted)
    assert found.dtype is wanted.dtype and found.device == wanted.device


def test_indexes_data() -> None:
    data = torch.arange(12.0).reshape(4, 3)
    for found in (data[made(2)], data.index_select(0, made(2)), data[..., made(2)]):
        assert type(found) is Tensor
    assert torch.equal(data[made(2)], data[:2])
    assert torch.equal(torch.nn.functional.embedding(made(2), data), data[:2])
    found = data.clone()
    found[made(2)] = 0.0
    assert torch.equal(found[:2], torch.zeros(2, 3))


def test_reads_as_a_tensor() -> None:
    assert len(made()) == 3 and made().tolist() == [0, 1, 2] and made()[2].item() == 2
    assert made().numpy().tolist() == [0, 1, 2] and int(made()[1]) == 1
    assert "0, 1, 2" in repr(made())


def test_copies_do_no_harm() -> None:
    indices = made()
    stream = io.BytesIO()
    torch.save(indices, stream)
    copies = [
        copy.copy(indices),
        copy.deepcopy(indices),
        pickle.loads(pickle.dumps(indices)),
        copy.deepcopy({"held": [indices, indices]})["held"][1],
        torch.load(io.BytesIO(stream.getvalue()), weights_only=True),
    ]
    for found in copies:
        assert type(found) is Tensor
        assert isinstance(found, Tensor) and torch.equal(found, torch.arange(3))
        assert [int(i) for i in found] == [0, 1, 2]
        assert torch.equal(found + 1, torch.arange(1, 4))
    twice = copy.deepcopy([indices, indices])
    assert twice[0] is twice[1]
    found = copy.deepcopy(indices)
    found.add_(1)
    assert indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [2, 1, 0])
def test_a_subsampled_plate_is_left_to_pyro(size: int) -> None:
    assert all_indices(_Subsample(3, size)) is None


@pytest.mark.parametrize("size", [None, 3, 4])
def test_a_plate_that_takes_all_is_not(size: int | None) -> None:
    found = all_indices(_Subsample(3, size))
    assert found is not None and found.tolist() == [0, 1, 2]


def test_other_sizes_and_devices_are_left_to_pyro() -> None:
    assert all_indices(_Subsample(torch.tensor(3), None)) is None
    fn = _Subsample(3, None)
    fn.use_cuda = True
    assert all_indices(fn) is None
    found = all_indices(_Subsample(3, None, device="meta"))
    assert found is not None and found.device.type == "meta"


# --- in programs ----------------------------------------------------------------------------------


def seen_by(program: Any, *args: Any) -> list[Any]:
    """What a model notes when the loss runs it."""
    seen: list[Any] = []

    def model(x: Tensor) -> None:
        program(x, seen)

    am.VariationalLoss().estimate(model, lambda x: None, args, {})
    return seen


def test_loops_have_numbers_and_plates_have_tensors() -> None:
    def program(x: Tensor, seen: list[Any]) -> None:
        for index in pyro.plate("loop", 2):
            seen.append(index)
            pyro.sample(f"y_{index}", dist.Normal(0.0, 1.0), obs=x[index])
        with pyro.plate("data", 3) as indices:
            seen.append(type(x[indices]))
            seen.append((indices + 1).tolist())
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]), obs=x[indices])

    seen = seen_by(program, torch.ones(3))
    assert seen[-4:] == [0, 1, Tensor, [1, 2, 3]] and type(seen[-4]) is int


def test_a_subsampled_plate_draws_as_before() -> None:
    def program(x: Tensor, seen: list[Any]) -> None:
        with pyro.plate("data", 10, subsample_size=4) as indices:
            seen.append(indices)
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]), obs=x[indices])

    pyro.set_rng_seed(3)
    indices = seen_by(program, torch.ones(10))[-1]
    assert not isinstance(indices, AllIndices)
    pyro.set_rng_seed(3)
    wanted = _Subsample(10, 4).sample(torch.Size())
    assert torch.equal(indices.sort()[0], wanted.sort()[0])


def test_given_indices_stay_what_they_are() -> None:
    rows = torch.tensor([2, 0])

    def program(x: Tensor, seen: list[Any]) -> None:
        with pyro.plate("data", 3, subsample=rows) as indices:
            seen.append(indices)
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]), obs=x[indices])

    assert seen_by(program, torch.ones(3))[-1] is rows


def test_outside_of_a_loss_nothing_is_changed() -> None:
    am.SVI(tiny.local_model, tiny.exact_guide, compile="off")
    with pyro.plate("data", 3) as indices:
        assert type(indices) is Tensor


def test_a_loop_over_a_plate_is_captured() -> None:
    def model(x: Tensor) -> None:
        for index in pyro.plate("loop", 3):
            z = pyro.sample(f"z_{index}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{index}", dist.Normal(z, 1.0), obs=x[:, index].sum())

    def guide(x: Tensor) -> None:
        for index in pyro.plate("loop", 3):
            loc = pyro.param(f"loc_{index}", torch.zeros(()))
            pyro.sample(f"z_{index}", dist.Normal(loc, 1.0))

    losses = []
    for mode in ("off", "graph"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = am.SVI(model, guide, lr=0.1, compile=mode)
        losses.append([svi.step(torch.ones(2, 3)) for _ in range(4)])
    assert losses[0] == losses[1]
