from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from amortized.compare import draws
from amortized.compare.draws import Sampler

pytestmark = pytest.mark.float64


@pytest.fixture(autouse=True)
def _as_in_a_comparison() -> Iterator[None]:
    with pyro.validation_enabled(False):
        yield


LEAF = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)


def slope(value: Tensor) -> Tensor:
    return torch.autograd.grad(value, LEAF)[0]


def categorical() -> Tensor:
    law = dist.Categorical(logits=LEAF)
    value = law.sample()
    return slope(law.log_prob(value) * value)


def normal() -> Tensor:
    return slope((dist.Normal(LEAF, LEAF.exp()).rsample() ** 2).sum())


def gamma() -> Tensor:
    return slope(dist.Gamma(LEAF.exp(), 1.0).rsample().log().sum())


def poisson() -> Tensor:
    law = dist.Poisson(LEAF.exp())
    value = law.sample()
    return slope((law.log_prob(value) * value).sum())


def dropout() -> Tensor:
    return slope((torch.nn.functional.dropout(LEAF, 0.4) * torch.randn(3)).sum())


@pytest.mark.parametrize("every", [2, 20])
def test_what_the_programs_count_is_found_after_the_draws(every: int):
    calls = [0]

    def counting() -> Tensor:
        calls[0] += 1
        return slope((dist.Normal(LEAF, 1.0).rsample() ** 2).sum()) * (
            5.0 if calls[0] % every == 0 else 1.0
        )

    sampler = Sampler(counting)
    assert (sampler.reason == "") == (every == 20), "too rare for the first audits"
    state = torch.get_rng_state()
    assert sampler.audited_after() == (every == 2), "draws one by one need no audit"
    assert torch.equal(state, torch.get_rng_state())
    assert sampler.reason == "the programs do something else at another draw"
    assert len(torch.cat([*sampler.chunks(50)])) == 50 and sampler.recording is None
    still = Sampler(normal)
    assert still.audited_after() and still.reason == ""


@pytest.mark.parametrize("law", [categorical, normal, gamma, poisson, dropout])
def test_draws_together_have_the_moments_of_draws_one_by_one(law):
    sampler = Sampler(law)
    alone = Sampler(law)
    alone.recording = None
    together = torch.cat([*sampler.chunks(4000)])
    single = torch.cat([*alone.chunks(2000)])
    assert together.shape == (4000, 3)
    assert sampler.reason == ""
    error = (together.var(0) / 4000 + single.var(0) / 2000).sqrt()
    assert ((together.mean(0) - single.mean(0)).abs() < 4.5 * error).all()
    assert ((together.var(0) / single.var(0)).log().abs() < 0.5).all()
    assert len(together.unique(dim=0)) > 2


def test_draws_are_independent_of_their_neighbours():
    draws = torch.cat([*Sampler(normal).chunks(5000)])
    away = draws - draws.mean(0)
    lag = (away[1:] * away[:-1]).mean(0) / away.square().mean(0)
    assert (lag.abs() < 4.5 / 5000**0.5).all()


def test_what_does_not_vary_is_repeated():
    found = torch.cat([*Sampler(lambda: slope((LEAF**2).sum())).chunks(3)])
    assert torch.equal(found, (2 * LEAF).detach().expand(3, 3))


def by_python() -> Tensor:
    return slope((LEAF * random.random()).sum())


def by_numpy() -> Tensor:
    return slope((LEAF * float(np.random.rand())).sum())


def by_item() -> Tensor:
    return slope((LEAF * torch.rand(()).item()).sum())


def by_branch() -> Tensor:
    return slope((LEAF if torch.rand(()) < 0.5 else LEAF**2).sum())


def by_list() -> Tensor:
    return slope((LEAF * torch.rand(1).tolist()[0]).sum())


def by_mask() -> Tensor:
    return slope((LEAF * torch.rand(3))[torch.rand(3) < 0.5].sum())


@pytest.mark.parametrize(
    "law", [by_python, by_numpy, by_item, by_branch, by_list, by_mask], ids=lambda f: f.__name__
)
def test_what_a_recording_cannot_repeat_is_evaluated_draw_by_draw(law):
    sampler = Sampler(law)
    assert sampler.reason
    found = torch.cat([*sampler.chunks(70)])
    assert found.shape == (70, 3)
    assert len(found.unique(dim=0)) > 1


KEPT = torch.zeros(3, dtype=torch.float64)


def into_a_kept_tensor() -> Tensor:
    return slope((LEAF * KEPT.normal_()).sum())


def into_a_part() -> Tensor:
    noise = torch.zeros(4)
    noise[:3].normal_()
    return slope((LEAF * noise[:3]).sum())


@pytest.mark.parametrize("law", [into_a_kept_tensor, into_a_part], ids=lambda f: f.__name__)
def test_noise_that_is_written_into_something_else_is_drawn_one_by_one(law):
    sampler = Sampler(law)
    assert sampler.reason == "noise is written into a tensor that has other uses"
    assert len(torch.cat([*sampler.chunks(5)]).unique(dim=0)) == 5


def test_chunks_keep_within_memory():
    sampler = Sampler(normal)
    sampler._at_once = 30
    assert [len(chunk) for chunk in sampler.chunks(70)] == [30, 30, 10]


def test_where_few_draws_fit_into_memory_the_recording_runs_one_by_one(monkeypatch):
    together = torch.cat([*Sampler(normal).chunks(4000)])
    recorded = Sampler(normal).recording
    assert recorded is not None
    monkeypatch.setattr(draws, "_AT_ONCE", 3 * recorded.elements)
    sampler = Sampler(normal)
    assert sampler.recording is not None and sampler.reason == ""
    monkeypatch.setattr(sampler, "gradient", None)  # the programs are not asked
    chunks = [*sampler.chunks(2000)]
    assert {len(chunk) for chunk in chunks} == {1}
    single = torch.cat(chunks)
    error = (together.var(0) / 4000 + single.var(0) / 2000).sqrt()
    assert ((together.mean(0) - single.mean(0)).abs() < 4.5 * error).all()
    assert len(single.unique(dim=0)) == 2000


@pytest.mark.parametrize("audits", [1, 3])
def test_a_recording_is_audited_as_often_as_asked(audits: int):
    calls = []
    Sampler(lambda: calls.append(1) or normal(), audits=audits)
    assert len(calls) == 1 + audits


def test_seconds_are_those_of_the_programs():
    assert 0 < Sampler(normal).seconds() < 5


def test_the_pace_is_that_of_a_draw_and_moves_no_generator() -> None:
    def slow() -> Tensor:
        time.sleep(0.01)
        return torch.randn(3, dtype=torch.float64)

    def values() -> Tensor:
        # what reads a value is made draw by draw
        return slow() + torch.rand(()).item()

    alone, together = Sampler(values), Sampler(slow)
    state = torch.get_rng_state()
    assert alone.reason and 0.01 <= alone.pace()
    assert not together.reason and together.pace() < 0.01
    assert torch.equal(state, torch.get_rng_state())


def test_what_torch_cannot_vectorize_is_not_told_at_each_draw(capfd: Any) -> None:
    def gradient() -> torch.Tensor:
        rates = torch.distributions.Gamma(torch.full((2,), 2.0, requires_grad=True), 1.0)
        return rates.rsample().clamp_(max=3.0).detach()

    sampler = Sampler(gradient)
    assert torch.cat(list(sampler.chunks(20))).shape == (20, 2)
    assert "performance drop" not in capfd.readouterr().err
