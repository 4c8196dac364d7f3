"""The score function against hand numbers: score, cost, copies, scales."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am
from amortized.estimators.base import Cost, Draw, Site, TorchNoise
from tests.laws.structures import EVERY
from tests.laws.test_subsets import same_when_captured
from tests.laws.test_unbiased import mean_gradient, true_gradient, warmed
from tests.reference import FixedNoise

pytestmark = pytest.mark.float64


def bernoulli(logit: torch.Tensor) -> Site:
    return Site("z", dist.Bernoulli(logits=logit))


def test_the_surrogate_is_zero_and_its_gradient_is_score_times_advantage() -> None:
    """d log q / d logit = z - p."""
    logit = torch.tensor([0.4, -1.0], requires_grad=True)
    draw = Draw(bernoulli(logit), torch.tensor([1.0, 0.0]))
    owed = am.ScoreFunction(am.Constant(-2.0)).surrogate(draw, Cost(torch.tensor([3.0, 7.0])))
    assert owed.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(owed.sum(), logit)
    expected = (draw.value - torch.sigmoid(logit)) * torch.tensor([5.0, 9.0])
    torch.testing.assert_close(gradient, expected.detach())


def test_copies_are_averaged() -> None:
    logit = torch.tensor(0.4, requires_grad=True)
    values, costs = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([3.0, 7.0, -1.0])
    draw = Draw(bernoulli(logit), values, copies=3, axis=-1)
    owed = am.ScoreFunction(num_samples=3).surrogate(draw, Cost(costs))
    (gradient,) = torch.autograd.grad(owed.sum(), logit)
    expected = ((values - torch.sigmoid(logit)) * costs).mean()
    assert gradient.item() == pytest.approx(expected.item())


def test_the_cost_is_not_differentiated() -> None:
    logit = torch.tensor(0.4, requires_grad=True)
    cost = torch.tensor(3.0, requires_grad=True)
    draw = Draw(bernoulli(logit), torch.tensor(1.0))
    am.ScoreFunction().surrogate(draw, Cost(cost * logit)).backward()
    assert cost.grad is None


@pytest.mark.parametrize(
    ("estimator", "copies"),
    [
        (am.ScoreFunction(), 1),
        (am.ScoreFunction(am.MovingAverage()), 1),
        (am.ScoreFunction(am.LeaveOneOut()), 2),
        (am.ScoreFunction(am.LeaveOneOut(), num_samples=5), 5),
        (am.ScoreFunction(num_samples=3), 3),
    ],
)
def test_how_many_values_are_drawn(estimator: am.ScoreFunction, copies: int) -> None:
    site = bernoulli(torch.zeros(4))
    draw = estimator.draw(site, TorchNoise())
    assert estimator.copies(site) == draw.copies == copies
    assert draw.value.shape == ((4,) if copies == 1 else (copies, 4))
    assert not draw.value.requires_grad


def test_with_particles_leave_one_out_needs_no_second_sample() -> None:
    site = Site("z", dist.Bernoulli(0.5), num_particles=4, particle_dim=-1)
    assert am.ScoreFunction(am.LeaveOneOut()).copies(site) == 1


def test_a_delta_has_no_score() -> None:
    def program() -> None:
        pyro.sample("theta", dist.Delta(torch.tensor(0.5)))

    with pytest.raises(am.EstimatorError, match=r"site 'theta'.*Delta.*am\.Pathwise\(\)"):
        am.VariationalLoss(estimators={"theta": "score_function"}).loss(program, program)


@pytest.mark.parametrize("count", [0, -3])
def test_no_samples_is_a_bad_call(count: int) -> None:
    with pytest.raises(am.UsageError, match=rf"num_samples={count}.*at least 1"):
        am.ScoreFunction(num_samples=count)


def test_a_fraction_of_a_sample_is_a_bad_call() -> None:
    with pytest.raises(am.UsageError, match=r"num_samples=2\.5"):
        am.ScoreFunction(num_samples=2.5)  # type: ignore[arg-type]


def test_a_baseline_must_be_one() -> None:
    with pytest.raises(am.UsageError, match=r"baseline=0\.9.*am\.MovingAverage"):
        am.ScoreFunction(0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (am.ScoreFunction(), "ScoreFunction()"),
        (am.ScoreFunction(am.Constant(1.0)), "ScoreFunction(baseline=Constant(1.0))"),
        (
            am.ScoreFunction(am.MovingAverage(), num_samples=2, normalize=True),
            "ScoreFunction(num_samples=2, normalize=True, baseline=MovingAverage(decay=0.9))",
        ),
    ],
)
def test_repr_is_what_one_would_type(estimator: am.ScoreFunction, text: str) -> None:
    assert repr(estimator) == text


X = torch.tensor([0.5, -1.0, 2.0])


def subsampled_model() -> None:
    with pyro.plate("data", 12, subsample=torch.tensor([3, 0, 7])), poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def subsampled_guide() -> None:
    logit = pyro.param("logit", torch.tensor([0.1, 0.2, -0.3]))
    with pyro.plate("data", 12, subsample=torch.tensor([3, 0, 7])), poutine.scale(scale=0.5):
        pyro.sample("z", dist.Bernoulli(logits=logit))


def test_costs_are_scaled_and_scores_are_not() -> None:
    """Twelve data, three in the batch, all annealed by a half: costs count twice, scores once."""
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.Constant(0.25))})
    estimate = loss.estimate(subsampled_model, subsampled_guide, (), {})
    estimate.loss.backward()
    logit = pyro.get_param_store()["logit"]
    value = estimate.run.guide["z"].value
    per_datum = 0.5 * (
        dist.Normal(value, 1.0).log_prob(X)
        + dist.Bernoulli(torch.full((3,), 0.3)).log_prob(value)
        - dist.Bernoulli(logits=logit).log_prob(value)
    )
    expected = -4.0 * (per_datum - 0.25) * (value - torch.sigmoid(logit))
    torch.testing.assert_close(logit.grad, expected.detach())


def test_a_masked_latent_keeps_its_score() -> None:
    """Its terms are masked, but an unmasked observation depends on the value."""

    def model() -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=torch.tensor([True, False])):
                z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:2])

    def guide() -> None:
        logit = pyro.param("logit", torch.tensor([0.1, 0.2]))
        with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    estimate = am.VariationalLoss(estimators="score_function").estimate(model, guide, (), {})
    estimate.loss.backward()
    logit, value = pyro.get_param_store()["logit"], estimate.run.guide["z"].value
    cost = dist.Normal(value, 1.0).log_prob(X[:2])[1]
    expected = -cost * (value - torch.sigmoid(logit))[1]
    assert logit.grad[1].item() == pytest.approx(expected.item())


def signals(estimator: am.ScoreFunction, costs: list[float]) -> float:
    """The signal of one draw of one bit at its first cost, after the estimator saw the others."""
    logit = torch.tensor(0.4, requires_grad=True)
    draw = Draw(bernoulli(logit), torch.tensor(1.0))
    for cost in costs[1:]:
        estimator.update(draw, Cost(torch.tensor(cost)))
    owed = estimator.surrogate(draw, Cost(torch.tensor(costs[0])))
    assert owed.item() == 0.0
    (gradient,) = torch.autograd.grad(owed, logit)
    return gradient.item() / (1 - torch.sigmoid(logit).item())


def test_normalization_divides_by_the_running_deviation_of_past_signals() -> None:
    """Moments start at 0 and move by a tenth; the present signal is not among them."""
    normalized = am.ScoreFunction(am.Constant(-1.0), normalize=True)
    assert signals(normalized, [9.0]) == pytest.approx(10.0)
    normalized = am.ScoreFunction(am.Constant(-1.0), normalize=True)
    mean = 0.9 * (0.1 * 20.0) + 0.1 * -40.0
    square = 0.9 * (0.1 * 20.0**2) + 0.1 * 40.0**2
    expected = 10.0 / (square - mean**2) ** 0.5
    assert signals(normalized, [9.0, 19.0, -41.0]) == pytest.approx(expected)


def test_a_small_deviation_normalizes_nothing() -> None:
    assert signals(am.ScoreFunction(normalize=True), [9.0, 0.5, -0.5]) == pytest.approx(9.0)


def test_normalization_is_told_to_be_biased_wherever_it_is_described() -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.3))

    told = am.VariationalLoss(estimators={"z": am.ScoreFunction(normalize=True)})
    text = str(told.describe(program, program, ()))
    assert "site 'z' is biased: normalize=True divides the gradient" in text
    plain = am.VariationalLoss(estimators={"z": am.ScoreFunction()})
    assert "biased" not in str(plain.describe(program, program, ()))
    assert am.ScoreFunction().bias == "" and am.ScoreFunction().state_dict() == {}


def test_the_bias_is_the_factor_exactly() -> None:
    """The mean gradient of the guide is multiplied by 1 / std, the model's is not."""
    pair = EVERY["plate"]("bernoulli")
    estimator = am.ScoreFunction(normalize=True)
    loss = am.VariationalLoss(estimators={"z": estimator})
    noise = FixedNoise(seed=5)
    warmed(loss, pair)
    (own,) = loss.estimators.by_site.values()
    own.moments.copy_(torch.tensor([1.0, 17.0]))
    mean, exact = mean_gradient(loss, pair, noise), true_gradient(pair, noise)
    for name in exact:
        factor = 0.25 if name == "a" else 1.0
        assert mean[name].item() == pytest.approx(factor * exact[name].item(), rel=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_normalization_survives_an_impossible_cost(bad: float) -> None:
    estimator = am.ScoreFunction(normalize=True)
    assert signals(estimator, [9.0, 0.5, bad]) == pytest.approx(9.0)
    assert estimator.moments.isfinite().all()


def test_the_moments_are_saved() -> None:
    first, second = (am.ScoreFunction(am.MovingAverage(), normalize=True) for _ in range(2))
    signals(first, [1.0, 30.0, -20.0])
    second.load_state_dict(first.state_dict())
    assert signals(second, [9.0]) == signals(first, [9.0])


def test_normalization_is_on_or_off() -> None:
    with pytest.raises(am.UsageError, match=r"normalize=2.: expected True or False"):
        am.ScoreFunction(normalize=2)  # type: ignore[arg-type]


def test_normalization_captured() -> None:
    pair = EVERY["plate"]("bernoulli")
    same_when_captured(pair, lambda: am.ScoreFunction(am.MovingAverage(), normalize=True))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_flow_that_caches_its_inverse_has_the_whole_score(cache_size: int) -> None:
    """The cached inverse was computed without a gradient, and holds a part of the score."""
    loc = torch.tensor(0.3, requires_grad=True)
    move = torch.distributions.AffineTransform(loc, 2.0, cache_size=cache_size)
    law = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [move])
    draw = am.ScoreFunction().draw(Site("z", law), TorchNoise())
    (score,) = torch.autograd.grad(draw.log_prob, loc)
    assert score.item() == pytest.approx((draw.value.item() - 0.3) / 4.0)
