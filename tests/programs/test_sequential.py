"""Copy by copy: the tree of runs."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am


def branching_model() -> None:
    """A site that only one value of the other reaches."""
    z = pyro.sample("z", dist.Bernoulli(0.3))
    if z.item() > 0.5:
        pyro.sample("y", dist.Bernoulli(0.6))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def branching_guide() -> None:
    """The same structure."""
    z = pyro.sample("z", dist.Bernoulli(0.5))
    if z.item() > 0.5:
        pyro.sample("y", dist.Bernoulli(0.2))


def test_enumeration_under_a_branch_is_the_exact_bound() -> None:
    """Three paths: z = 0; z = 1 with y = 0 and y = 1."""
    loss = am.VariationalLoss(estimators="enumerate", vectorize=False)
    log_x = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(1.0))
    half, kl_y = (
        torch.tensor(0.5),
        torch.distributions.kl_divergence(dist.Bernoulli(0.2), dist.Bernoulli(0.6)),
    )
    prior = torch.tensor([0.7, 0.3]).log()
    bound = (half * (log_x + prior - half.log())).sum() - half * kl_y
    assert loss.loss(branching_model, branching_guide) == pytest.approx(-bound.item(), rel=1e-6)


def test_describe_counts_the_runs() -> None:
    """One run of both programs for each path and particle."""
    loss = am.VariationalLoss(am.ELBO(num_particles=2), "enumerate", vectorize=False)
    assert loss.describe(branching_model, branching_guide, ()).model_evaluations == 6


def test_a_guide_that_is_no_function_of_its_draws_is_refused() -> None:
    """It samples something else when it is run again on equal values."""
    calls = []

    def guide() -> None:
        calls.append(1)
        pyro.sample("z", dist.Bernoulli(0.5))
        if len(calls) % 2:
            pyro.sample("y", dist.Bernoulli(0.5))
        else:
            pyro.sample("w", dist.Bernoulli(0.5), infer={"is_auxiliary": True})
            pyro.sample("y", dist.Bernoulli(0.5))

    def model() -> None:
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Bernoulli(0.5))

    loss = am.VariationalLoss(estimators={"z": "enumerate", "y": "enumerate"}, vectorize=False)
    with pytest.raises(am.ProgramError, match="function of its inputs"):
        loss.loss(model, guide)


def test_parts_of_the_bound_agree_with_the_vectorized_run() -> None:
    """The terms are averaged over the copies."""

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.tensor([0.1, 0.9, 2.2]))

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Categorical(torch.eye(3) + 0.2))

    found = [
        am.VariationalLoss(estimators="enumerate", vectorize=fast).estimate(model, guide, (), {})
        for fast in (True, False)
    ]
    assert found[0].kl.item() == pytest.approx(found[1].kl.item(), rel=1e-6)
    assert found[0].elbo.item() == pytest.approx(found[1].elbo.item(), rel=1e-6)
    assert found[1].reconstruction - found[1].kl == pytest.approx(found[1].elbo.item(), rel=1e-5)
