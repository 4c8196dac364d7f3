"""An objective says what is bounded; what the loss cannot serve yet it refuses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.objectives.base import Objective


def test_an_objective_must_have_a_bound() -> None:
    class Empty(Objective):
        """Bounds nothing."""

    with pytest.raises(TypeError, match="bound"):
        Empty()  # type: ignore[abstract]


class Tight(Objective):
    """An importance-weighted bound, which charges sites through the bound itself."""

    num_particles = 4
    additive = False
    analytic_kl = False

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.logsumexp(0)


def test_a_bound_that_is_no_sum_is_not_taken_for_an_elbo() -> None:
    """Particles that run one by one would be averaged: a wrong number without a word."""
    with pytest.raises(am.UsageError, match=r"objective=.*all particles at once"):
        am.VariationalLoss(Tight(), vectorize=False)


@pytest.mark.parametrize("objective", [am.IWAE(1), am.Renyi(0.5, 1)], ids=repr)
def test_one_particle_has_copies_that_are_not_run_one_by_one_either(objective: Objective) -> None:
    """They would be evaluated at once, for programs that cannot, without a word."""
    with pytest.raises(am.UsageError, match=r"objective=.*with all copies of their sites"):
        am.VariationalLoss(objective, "enumerate", vectorize=False)


class Half(Objective):
    """A sum of terms, in which the KL of every site counts half."""

    num_particles = 1
    additive = True
    by_site = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def beta_of(self, site: str, step: Tensor) -> float:
        return 0.5


@pytest.mark.parametrize("vectorize", [True, False])
def test_weights_by_site_are_asked_of_every_objective(vectorize: bool) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Normal(1.0, 0.5))

    found = []
    for objective in (Half(), am.ELBO(beta=0.5), am.ELBO()):
        pyro.set_rng_seed(0)
        found.append(am.VariationalLoss(objective, vectorize=vectorize).loss(model, guide))
    half, same, whole = found
    assert half == same != whole


@pytest.mark.parametrize("wrong", ["elbo", 3, am.ELBO])
def test_what_is_no_objective_is_refused(wrong: object) -> None:
    with pytest.raises(am.UsageError, match=r"objective=.*am\.ELBO\(\)"):
        am.VariationalLoss(wrong)  # type: ignore[arg-type]
