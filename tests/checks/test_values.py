from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import amortized as am
from amortized.checks.values import loss_findings
from amortized.estimate import Estimate


def estimated(loc: float) -> Estimate:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1e18), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x, 1.0))

    x = torch.tensor([1e18, 1.0, 2.0])
    return am.VariationalLoss().estimate(model, guide, (x,), {})


def test_a_finite_loss_says_nothing() -> None:
    assert list(loss_findings(estimated(0.0))) == []


def test_an_infinite_loss_is_broken_down_by_site() -> None:
    (finding,) = loss_findings(estimated(1e12))
    assert (finding.code, finding.site) == ("non-finite-loss", "z")
    assert "log p(z) = -inf in 1 of 3 elements" in finding.found
    assert "log p(x) = " in finding.found


def test_a_rate_from_relu_is_thought_of() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.relu()), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    (finding,) = am.check(model, guide, torch.ones(50)).errors
    assert (finding.code, finding.site) == ("non-finite-loss", "x")
    assert "a rate or probability of exactly 0, as relu gives" in finding.advice
