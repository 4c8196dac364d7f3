"""Where randomness is not finite, or Pyro charges more than we do: equality in the mean, by z-test.

The false-alarm rate of a whole test is 1e-6 (two-sided, Bonferroni over its coordinates); seeds are
fixed, so a test that passes keeps passing. Each statistic is shown to find a mutant.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import Normal

import amortized as am
from tests.laws.structures import EVERY, Structure

FALSE_ALARMS = 1e-6


def rejected(draws: Tensor, truth: Tensor | float, other: Tensor | None = None) -> bool:
    """Whether means differ: draws ``[n, coordinates]`` against a truth or against other draws."""
    variance = draws.var(0) / len(draws)
    mean = draws.mean(0)
    if other is not None:
        truth, variance = other.mean(0), variance + other.var(0) / len(other)
    z = ((mean - truth).abs() / variance.sqrt().clamp(min=1e-300)).max()
    bound = Normal(0.0, 1.0).icdf(torch.tensor(1 - FALSE_ALARMS / (2 * draws.shape[1])))
    return bool(z > bound)


def gradient_draws(loss: PyroELBO, pair: Structure, count: int) -> Tensor:
    """Independent gradients of the loss in all parameters, ``[count, coordinates]``."""
    store = pyro.get_param_store()
    loss.loss(pair.model, pair.guide)
    leaves = [store[name].unconstrained() for name in sorted(store)]
    rows = []
    with pyro.validation_enabled(False):
        for _ in range(count):
            for leaf in leaves:
                leaf.grad = None
            loss.loss_and_grads(pair.model, pair.guide)
            grads = [leaf.grad if leaf.grad is not None else leaf.new_zeros(()) for leaf in leaves]
            rows.append(torch.stack([g.reshape(()) for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("structure", ["chain", "python_loop", "partially_observed"])
def test_several_score_function_latents_equal_trace_elbo_in_the_mean(structure: str) -> None:
    """Pyro charges more terms to each site; the mean is the same."""
    pair = EVERY[structure]("bernoulli")
    ours = gradient_draws(am.VariationalLoss(estimators=am.ScoreFunction()), pair, 1500)
    theirs = gradient_draws(Trace_ELBO(), pair, 1500)
    assert not rejected(ours, 0.0, theirs)
    assert rejected(0.5 * ours, 0.0, theirs)


def linear_gaussian() -> Structure:
    """z ~ N(0, 1), x = 1.5 ~ N(0.7 z, 1), q = N(a, s): its ELBO has a closed form."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(0.7 * z, 1.0), obs=torch.tensor(1.5))

    def guide() -> None:
        a = pyro.param("a", torch.tensor(0.4))
        s = pyro.param("s", torch.tensor(-0.3))
        pyro.sample("z", dist.Normal(a, s.exp()))

    return Structure(model, guide)


def exact_loss_gradient(a: float = 0.4, s: float = -0.3) -> Tensor:
    """d/da and d/ds of minus the closed-form ELBO, s the log of the scale."""
    variance = torch.tensor(2 * s).exp()
    slope_a = a - 0.7 * (1.5 - 0.7 * a)
    slope_s = variance * (1 + 0.49) - 1
    return torch.tensor([slope_a, float(slope_s)])


ON_A_NORMAL: dict[str, Callable[[], am.VariationalLoss]] = {
    "pathwise": lambda: am.VariationalLoss(am.ELBO(4)),
    "pathwise, analytic KL": lambda: am.VariationalLoss(am.ELBO(4, kl="analytic")),
    "score": lambda: am.VariationalLoss(am.ELBO(64), am.ScoreFunction()),
    "score, two samples": lambda: am.VariationalLoss(am.ELBO(32), am.ScoreFunction(num_samples=2)),
    "moving average": lambda: am.VariationalLoss(am.ELBO(4), "moving_average"),
    "leave one out, particles": lambda: am.VariationalLoss(am.ELBO(4), "leave_one_out"),
    "leave one out, own samples": lambda: am.VariationalLoss(
        estimators=am.ScoreFunction(am.LeaveOneOut(), num_samples=4)
    ),
    "score, analytic KL": lambda: am.VariationalLoss(am.ELBO(4, kl="analytic"), "leave_one_out"),
    "neural baseline": lambda: am.VariationalLoss(am.ELBO(4), "neural_baseline"),
    "copy by copy": lambda: am.VariationalLoss(am.ELBO(2), "leave_one_out", vectorize=False),
}


@pytest.mark.parametrize("estimator", sorted(ON_A_NORMAL))
def test_a_normal_latent_against_its_closed_form(estimator: str) -> None:
    """Continuous randomness: every estimator's mean is the exact gradient."""
    pair = linear_gaussian()
    pyro.get_param_store()
    loss = ON_A_NORMAL[estimator]()
    loss.warm_up(pair.model, pair.guide, ())
    draws = gradient_draws(loss, pair, 600)[:, -2:]
    assert not rejected(draws, exact_loss_gradient())
    assert rejected(draws.roll(1, 1), exact_loss_gradient())
