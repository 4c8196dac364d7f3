"""Bounds of several sizes from chunks of any size, against all draws at once."""

import math

import pytest
import torch

import amortized as am
from amortized.estimate import LogWeights
from amortized.fit.particles import Particles
from tests.fit import tiny

pytestmark = pytest.mark.float64


def draws(count, data=3):
    return torch.randn(count, data, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("chunks", [[24], [1] * 24, [5, 7, 12], [23, 1], [2, 22]], ids=str)
def test_chunks_do_not_matter(chunks):
    log_w, sizes = draws(24), [1, 2, 5, 24]
    particles = Particles(sizes)
    for part in log_w.split(chunks):
        particles.add(LogWeights(part, torch.zeros_like(part), 2 * part, per_datum=True))
    elbo, likelihood, effective, *bounds = particles.means()
    assert torch.allclose(elbo, log_w.mean(0), rtol=1e-12)
    assert torch.allclose(likelihood, 2 * log_w.mean(0), rtol=1e-12)
    w = log_w.exp()
    assert torch.allclose(effective, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-12)
    for size, bound in zip(sizes, bounds, strict=True):
        groups = log_w[: 24 // size * size].reshape(-1, size, 3)
        by_hand = (groups.logsumexp(1) - math.log(size)).mean(0)
        assert torch.allclose(bound, by_hand, rtol=1e-12)


def test_bounds_rise_with_their_size_and_the_posterior_is_worth_all_its_draws():
    x = tiny.data(40)
    svi = am.SVI(tiny.local_model, lambda x: (pyro_zero(), tiny.exact_guide(x)))
    found = svi.evaluate(x, num_particles=[1, 4, 20], seed=0)
    exact = tiny.log_evidence(x)
    assert [found[f"log_evidence/{k}"] for k in (1, 4, 20)] == pytest.approx([exact] * 3)
    assert found["ess"] == pytest.approx(20.0)
    assert found["num_particles"] == 20
    assert found["log_evidence"] == found["log_evidence/20"]


def pyro_zero():
    import pyro

    return pyro.param("unused", torch.zeros(()))


def test_a_poor_guide_is_worth_fewer():
    x = tiny.data(40)
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    found = svi.evaluate(x, num_particles=[1, 10, 100], seed=0)
    assert found["log_evidence/1"] < found["log_evidence/10"] < found["log_evidence/100"]
    assert found["log_evidence/1"] == pytest.approx(found["elbo"])
    assert 1.0 < found["ess"] < 95.0


@pytest.mark.parametrize("asked", [0, [], [5, 0], "many", [2.5]])
def test_what_counts_nothing_is_refused(asked):
    svi = am.SVI(tiny.local_model, tiny.param_guide)
    with pytest.raises(am.UsageError, match="num_particles"):
        svi.evaluate(tiny.data(4), num_particles=asked)


def test_draws_that_are_all_impossible_are_worth_none():
    log_w = draws(6)
    log_w[:, 1] = -math.inf
    particles = Particles([3])
    particles.add(LogWeights(log_w, torch.zeros_like(log_w), log_w, per_datum=True))
    elbo, _, effective, bound = particles.means()
    assert effective[1] == 0.0 and effective[0] >= 1.0
    assert elbo[1] == bound[1] == -math.inf
