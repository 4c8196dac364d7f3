from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.compare.training.beginning import (
    Beginning,
    Watched,
    data_digest,
    first_other,
    optimizer_of,
    start_of,
)
from amortized.fit.data import as_batches, first_batch
from tests.compare.training.programs import bits

START = Beginning("a", "b", "c", -2.0)


def test_rounding_is_no_difference():
    assert START.differs(replace(START, elbo=-2.00001)) is None
    assert START.differs(replace(START, elbo=-2.01)) == ("the ELBO before training", -2.0, -2.01)
    unknown = replace(START, elbo=math.nan)
    assert unknown.differs(unknown) is None and unknown.differs(START) is not None
    assert START.differs(replace(START, val="x")) == ("the validation data", "c", "x")


def test_the_start_is_that_of_parameters_and_buffers():
    def start(change: Any) -> str:
        torch.manual_seed(0)
        made = bits()
        svi = am.SVI(made.model, made.guide, am.VariationalLoss(estimators="leave_one_out"))
        svi.describe(made.train[:4])
        for module in (svi.model, svi.guide):
            with svi.scope():
                module(made.train[:4])
        change(svi)
        return start_of(svi)

    def moved(svi: am.SVI) -> None:
        with svi.scope(), torch.no_grad():
            next(leaf for _, leaf in pyro.get_param_store().named_parameters()).add_(1.0)

    assert start(lambda svi: None) == start(lambda svi: None) != start(moved)


def test_all_data_in_memory_are_looked_at_and_one_batch_of_a_loader():
    data, other = torch.zeros(30, 2), torch.zeros(30, 2)
    other[-1] = 1.0
    digest = partial(data_digest, batch_size=10)
    assert digest(data, first=data[:10]) != digest(other, first=other[:10])
    loaders = [DataLoader(TensorDataset(x), 10) for x in (data, other, other[:20])]
    found = [digest(loader, first=first_batch(loader)) for loader in loaders]
    assert found[0] == found[1] != found[2]


def test_batches_are_told_once_training_listens():
    met: list[str] = []
    data = torch.arange(250.0)
    watched = Watched(as_batches(data, 10), lambda place, batch: met.append(place))
    assert len(list(watched.epoch())) == 25 and met == []
    watched.listening = True
    passes = [torch.cat(list(watched.epoch(torch.Generator().manual_seed(s)))) for s in range(6)]
    assert met[0] == "1/1" and met[16] == "2/1" and len(met) == 4 * 16
    for seed, found in enumerate(passes):
        order = as_batches(data, 10).epoch(torch.Generator().manual_seed(seed))
        assert torch.equal(found, torch.cat(list(order)))


def test_batches_answer_as_they_do_unwatched():
    data = torch.arange(20.0)
    data[3] = math.nan
    plain = as_batches(data, 8)
    watched = Watched(plain, lambda place, batch: None)
    assert (watched.size, watched.num_batches, watched.rows_asked()) == (20, 3, 8)
    assert watched.non_finite_rows() == plain.non_finite_rows() == [3]
    assert torch.equal(watched.rows([1, 2]), data[1:3])
    assert watched.numbers(2) == plain.numbers(2)
    assert watched.peek(2).tolist() == [0.0, 1.0]
    loader = DataLoader(TensorDataset(data), 4, shuffle=True, generator=torch.Generator())
    assert len(Watched(as_batches(loader), lambda place, batch: None).generators()) == 1


def test_the_first_other_batch_is_found_as_far_as_both_went():
    one = {"1/1": "a", "1/2": "b"}
    assert first_other(one, {"1/1": "a", "1/2": "x"}) == "1/2"
    assert first_other(one, {"1/1": "a"}) is None


@pytest.mark.parametrize(
    ("factory", "kind"),
    [(lambda p: torch.optim.Adam(p), "Adam"), (lambda p: torch.optim.SGD(p, lr=0.5), "SGD")],
)
def test_an_optimizer_is_what_the_factory_makes(factory: Any, kind: str):
    found = optimizer_of(factory, 0.05)
    assert found["class"] == kind
    assert [group["lr"] for group in found["groups"]] == [0.05] * 3
    assert optimizer_of(lambda p: {}["no"], 0.05) is None
