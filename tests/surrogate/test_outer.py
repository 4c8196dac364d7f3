"""Shared plates, and the scale outside the logarithm."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am
from amortized.programs.records import Run
from amortized.surrogate.outer import OuterScale, shared_plates

TWO = torch.zeros(2)


def run_of(model: Callable[[], None], guide: Callable[[], None]) -> Run:
    return am.VariationalLoss().estimate(model, guide, (), {}).run


def guide() -> None:
    with pyro.plate("data", 10, subsample=torch.arange(2)):
        pyro.sample("z", dist.Normal(TWO, 1.0))


def model() -> None:
    with pyro.plate("data", 10, subsample=torch.arange(2)):
        z = pyro.sample("z", dist.Normal(TWO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=TWO)


def test_plates_that_hold_everything() -> None:
    assert shared_plates(run_of(model, guide)) == {("data", -1)}

    def other() -> None:
        model()
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    assert shared_plates(run_of(other, guide)) == frozenset()


def test_subsampling_is_everybody_s_scale() -> None:
    run = run_of(model, guide)
    assert OuterScale().of(run, shared_plates(run), read=True) == (5.0, True)


def test_of_different_scales_only_the_subsampling_stands_outside() -> None:
    run = run_of(poutine.scale(model, 3.0), guide)
    assert OuterScale().of(run, shared_plates(run), read=True) == (5.0, False)


def test_tensors_are_compared_by_value_and_remembered_where_they_cannot_be_read() -> None:
    weights = torch.tensor([1.0, 4.0])
    run = run_of(poutine.scale(model, weights), poutine.scale(guide, weights.clone()))
    outer, shared = OuterScale(), shared_plates(run)
    assert outer.of(run, shared, read=False)[1] is False
    scale, common = outer.of(run, shared, read=True)
    assert common and torch.equal(torch.as_tensor(scale), 5 * weights)
    assert outer.of(run, shared, read=False)[1] is True


def test_a_scale_that_varies_inside_the_logarithm_stays_there() -> None:
    scale, x = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, -1.0, 0.8])

    def q() -> None:
        with poutine.scale(scale=scale), pyro.plate("first", 3):
            pyro.sample("z", dist.Normal(0.2, 1.0))

    def p() -> None:
        with poutine.scale(scale=scale):
            with pyro.plate("first", 3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("second", 3):
                pyro.sample("x", dist.Normal(z.flip(-1), 0.5), obs=x)

    values = []
    for objective in (am.ELBO(), am.IWAE(1)):
        loss = am.VariationalLoss(objective)
        loss.warm_up(p, q, ())
        pyro.set_rng_seed(0)
        values.append(loss.loss(p, q))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_minibatch_that_not_everybody_is_in_is_refused() -> None:
    def whole() -> None:
        pyro.sample("g", dist.Normal(0.0, 1.0))
        model()

    run = run_of(whole, lambda: [pyro.sample("g", dist.Normal(0.0, 1.0)), guide()] and None)
    with pytest.raises(am.ProgramError, match=r"'data' \(2 of 10\).*biased"):
        OuterScale().of(run, shared_plates(run), read=True)
