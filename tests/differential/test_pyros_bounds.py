"""What Pyro's own bounds of several weights get wrong, beside the exact number and ours.

The expectation of Pyro's gradient is taken over every outcome of its particles: a distribution that
draws from a script stands in for chance. The numbers are those of docs/objectives.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import Tensor

import amortized as am
from tests.reference import FixedNoise, estimate_law

pytestmark = pytest.mark.float64

LOGIT = 0.4
JOINT = (0.07, 0.24)


class Scripted(dist.Bernoulli):
    """Draws what it is told to."""

    script: Iterator[float]

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        return torch.full(self.shape(torch.Size(sample_shape)), next(type(self).script))


def model() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    joint = torch.tensor(JOINT).log()[z.long()] - dist.Bernoulli(0.5).log_prob(z)
    pyro.factor("x", joint)


def guide(family: type[dist.Bernoulli] = dist.Bernoulli) -> None:
    pyro.sample("z", family(logits=pyro.param("a", torch.tensor(LOGIT))))


def exact(alpha: float, count: int) -> float:
    """The derivative of the bound in the logit, over all tuples."""
    logit = torch.tensor(LOGIT, requires_grad=True)
    states = torch.tensor([0.0, 1.0])
    log_q = dist.Bernoulli(logits=logit).log_prob(states)
    log_w = torch.tensor(JOINT).log() - log_q
    objective = am.Renyi(alpha, count)
    total = torch.zeros(())
    for chosen in product(range(2), repeat=count):
        rows = list(chosen)
        total = total + log_q[rows].sum().exp() * objective.bound(log_w[rows])
    (slope,) = torch.autograd.grad(total, logit)
    return slope.item()


def of_pyro(alpha: float, count: int) -> float:
    """The mean of Pyro's gradient over all outcomes."""
    loss = RenyiELBO(alpha=alpha, num_particles=count)
    mean = 0.0
    for chosen in product([0.0, 1.0], repeat=count):
        pyro.clear_param_store()
        Scripted.script = iter(chosen)
        loss.loss_and_grads(model, lambda: guide(Scripted))
        mass = dist.Bernoulli(logits=torch.tensor(LOGIT)).log_prob(torch.tensor(chosen)).sum()
        gradient = pyro.param("a").unconstrained().grad
        assert gradient is not None
        mean -= mass.exp().item() * gradient.item()
    return mean


def ours(alpha: float, count: int) -> float:
    pyro.clear_param_store()
    loss = am.VariationalLoss(am.Renyi(alpha, count), {"z": am.ScoreFunction()})
    loss.warm_up(model, guide, ())
    leaf = pyro.param("a").unconstrained()

    def run(tree: object) -> list[Tensor]:
        value = -loss.estimate(model, guide, (), {}, noise=tree).loss  # type: ignore[arg-type]
        return list(torch.autograd.grad(value, [leaf]))

    return estimate_law(run, noise=FixedNoise()).mean[0].item()


@pytest.mark.parametrize(
    ("alpha", "count", "theirs", "truth"),
    [
        (0.0, 2, 0.0, 0.0974),
        (0.2, 2, 0.0193, 0.1163),
        pytest.param(0.5, 8, 0.0840, 0.1072, marks=pytest.mark.long),
    ],
)
def test_a_score_function_site(alpha: float, count: int, theirs: float, truth: float) -> None:
    assert exact(alpha, count) == pytest.approx(truth, abs=5e-5)
    assert ours(alpha, count) == pytest.approx(exact(alpha, count), abs=1e-12)
    assert of_pyro(alpha, count) == pytest.approx(theirs, abs=5e-5)


X = (0.3, -1.2, 0.8, 2.0)


def normal_model(rows: int) -> None:
    with pyro.plate("data", 4, subsample_size=rows, subsample=torch.arange(rows)):
        z = pyro.sample("z", dist.Normal(torch.zeros(rows), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(X[:rows]))


def normal_guide(rows: int) -> None:
    with pyro.plate("data", 4, subsample_size=rows, subsample=torch.arange(rows)):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))


def value(loss: Callable[[], float], draws: int) -> float:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return sum(loss() for _ in range(draws)) / draws


def test_a_minibatch_stands_for_the_data_outside_the_logarithm() -> None:
    """One datum that stands for four: Pyro's number is above their evidence, so no bound."""
    count = 10
    mine = am.VariationalLoss(am.IWAE(count))
    theirs = RenyiELBO(
        alpha=0.0, num_particles=count, vectorize_particles=True, max_plate_nesting=1
    )
    parts = {}
    for name, loss in (("ours", mine), ("Pyro's", theirs)):
        parts[name] = [
            value(lambda loss=loss, rows=rows: -loss.loss(normal_model, normal_guide, rows), draws)
            for rows, draws in ((4, 3), (1, 500))
        ]
    # one row of four, four times: compare with the first datum's own bound
    log_w = _own_bound(count)
    assert parts["ours"][1] == pytest.approx(4 * log_w, abs=0.15)  # 4 standard errors
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(X[0])).item()
    assert parts["ours"][1] < 4 * evidence < parts["Pyro's"][1] - 0.4
    # without subsampling, with every site in the plate, both take one bound a datum
    assert parts["ours"][0] == pytest.approx(parts["Pyro's"][0], rel=1e-12)


def _own_bound(count: int) -> float:
    """E of the bound of the first datum, by a million draws."""
    torch.manual_seed(1)
    z = 0.1 + torch.randn(count, 100_000)
    x = torch.tensor(X[0])
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    log_w = log_p - dist.Normal(0.1, 1.0).log_prob(z)
    return am.IWAE(count).bound(log_w).mean().item()


def test_the_bound_of_a_batch_is_the_sum_of_the_bounds_of_its_data() -> None:
    """On the same noise, and it is above one bound of the whole batch."""
    whole = am.VariationalLoss(am.IWAE(20))
    pyro.clear_param_store()
    estimate = whole.estimate(normal_model, normal_guide, (4,), {})
    z = estimate.run.guide["z"].value
    x = torch.tensor(X)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    log_w = log_p - dist.Normal(0.1, 1.0).log_prob(z)
    single = [am.IWAE(20).bound(column).item() for column in log_w.T]
    assert -estimate.loss.item() == pytest.approx(sum(single), rel=1e-12)
    together = am.IWAE(20).bound(log_w.sum(1)).item()
    assert together < sum(single)
