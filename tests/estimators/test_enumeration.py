"""Enumeration: supports, weights, impossible values, refusals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Site, TorchNoise
from amortized.estimators.enumeration import support_of

pytestmark = pytest.mark.float64

SUPPORTS: dict[str, tuple[dist.Distribution, int]] = {
    "bit": (dist.Bernoulli(torch.tensor(0.3)), 2),
    "bits of a datum": (dist.Bernoulli(torch.full((4, 3), 0.3)).to_event(1), 8),
    "two event dims": (dist.Bernoulli(torch.full((4, 3, 2), 0.3)).to_event(2), 64),
    "plate": (dist.Categorical(torch.ones(4, 5)), 5),
    "index vector": (dist.Categorical(torch.ones(4, 2, 5)).to_event(1), 25),
    "one-hot": (dist.OneHotCategorical(torch.ones(4, 3)), 3),
    "one-hot vector": (dist.OneHotCategorical(torch.ones(4, 2, 3)).to_event(1), 9),
    "count": (dist.Binomial(3, torch.full((4,), 0.2)), 4),
    "expanded": (dist.Bernoulli(torch.tensor(0.3)).expand([4]), 2),
    "one value": (dist.Categorical(torch.ones(4, 1)), 1),
}


@pytest.mark.parametrize("name", sorted(SUPPORTS))
def test_the_support_is_all_values_once(name: str) -> None:
    law, count = SUPPORTS[name]
    values = support_of(law)
    assert values.shape == (count, *law.batch_shape, *law.event_shape)
    assert am.Enumerate().copies(Site("z", law)) == count
    rows = values.reshape(count, math.prod(law.batch_shape), -1)[:, 0]
    assert len({tuple(row.tolist()) for row in rows}) == count


@pytest.mark.parametrize("name", sorted(SUPPORTS))
def test_the_weights_are_a_distribution(name: str) -> None:
    law, count = SUPPORTS[name]
    estimator = am.Enumerate()
    draw = estimator.draw(Site("z", law), TorchNoise())
    total = estimator.weights(draw).sum(0) if count > 1 else estimator.weights(draw)
    torch.testing.assert_close(total, torch.ones_like(total))


def bit(probability: float, bonus: Tensor) -> tuple[float, float]:
    """Loss and its gradient for one bit under a flat prior and a bonus for each value."""

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("bonus", bonus[z.long()])

    def guide() -> None:
        logit = pyro.param("logit", torch.tensor(math.log(probability / (1 - probability))))
        pyro.sample("z", dist.Bernoulli(logits=logit))

    loss = am.VariationalLoss(estimators="enumerate").loss_and_grads(model, guide)
    return loss, pyro.get_param_store()["logit"].grad.item()


def test_value_and_gradient_by_hand() -> None:
    """-L = -(E b + H(q) - log 2); d/dlogit = -p (1 - p) (b1 - b0 - logit)."""
    p, low, high = 0.3, -1.0, 2.0
    loss, gradient = bit(p, torch.tensor([low, high]))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert loss == pytest.approx(-((1 - p) * low + p * high + entropy - math.log(2)))
    slope = p * (1 - p) * (high - low - math.log(p / (1 - p)))
    assert gradient == pytest.approx(-slope)


def test_a_value_of_probability_zero_with_an_infinite_cost_adds_nothing() -> None:
    """0 times -inf is NaN unless it is kept out."""
    impossible = torch.tensor([0.0, 0.0, -math.inf])

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3) + impossible))
        pyro.factor("bonus", z.to(torch.float64))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, 0.1, 0.5]))
        pyro.sample("z", dist.Categorical(logits=logits + impossible))

    loss = am.VariationalLoss(estimators="enumerate").loss_and_grads(model, guide)
    gradient = pyro.get_param_store()["logits"].grad
    q = torch.softmax(torch.tensor([0.3, 0.1]), 0)
    cost = torch.tensor([0.0, 1.0]) - math.log(2) - q.log()
    assert loss == pytest.approx(-(q * cost).sum().item())
    expected = -q * (cost - (q * cost).sum())
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(1)]))


REFUSED: dict[str, tuple[dist.Distribution, str]] = {
    "no end": (dist.Poisson(torch.tensor(2.0)), "Poisson has no finite support"),
    "continuous": (dist.Normal(0.0, 1.0), "Normal has no finite support"),
    "too many": (dist.Bernoulli(torch.full((13,), 0.5)).to_event(1), "8192 values (at most 4096)"),
    "ragged": (
        dist.Binomial(torch.tensor([2.0, 3.0]), torch.tensor(0.5)).to_event(1),
        "support of Binomial cannot be enumerated",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_cause_and_remedy(name: str) -> None:
    law, cause = REFUSED[name]

    def program() -> None:
        pyro.sample("count", law)

    with pytest.raises(am.EstimatorError) as error:
        am.VariationalLoss(estimators={"count": "enumerate"}).loss(program, program)
    text = str(error.value)
    assert "site 'count'" in text and cause in text and "am.ScoreFunction(am.LeaveOneOut())" in text


def test_particles_do_not_multiply_an_enumerated_site() -> None:
    """Summed exactly once, it costs the same with one particle or seven."""

    def program() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.factor("bonus", z)

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    one = am.VariationalLoss(estimators="enumerate").loss(program, guide)
    loss = am.VariationalLoss(am.ELBO(num_particles=7), "enumerate")
    assert loss.loss(program, guide) == pytest.approx(one, rel=1e-12)
    assert loss.describe(program, guide, ()).model_evaluations == 2


@pytest.mark.parametrize("estimator", ["enumerate", "sum_and_sample", "unordered_set"])
def test_a_captured_step_knows_the_trials_of_a_binomial_and_sees_when_they_change(
    estimator: str,
) -> None:
    """The number of trials stands in a tensor: a replay for another one is done again eagerly."""

    def model(trials: torch.Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Binomial(trials, torch.full((4,), 0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(4))

    def guide(trials: torch.Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Binomial(trials, logits=logits))

    found = []
    for mode in ("off", "graph"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = am.VariationalLoss(estimators=estimator)
        svi = am.SVI(model, guide, loss, lr=0.1, compile=mode)
        found.append([svi.step(torch.full((4,), n)) for n in (3.0, 3.0, 3.0, 3.0, 5.0, 3.0, 2.0)])
    assert found[0] == found[1] and len(set(found[0])) == 7
