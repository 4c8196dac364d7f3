"""REBAR: published variances by quadrature, what it learns, hazards, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

import amortized as am
from amortized.estimators import rebar
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, TorchNoise
from amortized.estimators.conditional import logits_by_element
from amortized.estimators.rebar import REBAR
from tests.laws.grids import Grid, tanh_sinh
from tests.laws.test_in_the_mean import rejected

LawOf = Callable[[Tensor], Distribution]
CostOf = Callable[[Tensor], Tensor]


def bits(logits: Tensor) -> Distribution:
    return dist.Bernoulli(logits=logits)


def one_hot(logits: Tensor) -> Distribution:
    return dist.OneHotCategorical(logits=logits)


def charged(
    estimator: Estimator, site: Site, cost_of: CostOf, noise: Noise
) -> tuple[Draw, Cost, Tensor]:
    """A site with one batch dim, its cost, and what the estimator owes for it."""
    drawn = estimator.draw(site, noise)
    if drawn.copies > 1:
        drawn = replace(drawn, axis=-2, root=drawn.value)
    costs = cost_of(drawn.value)
    total = costs.sum() if estimator.differentiates_cost else None
    cost = Cost(costs.detach(), total=total)
    owed = estimator.surrogate(drawn, cost)
    assert owed is not None
    return drawn, cost, owed


def gradients(
    estimator: Estimator, law_of: LawOf, logits: Tensor, cost_of: CostOf, noise: Noise
) -> Tensor:
    """The gradient of each element in its own logits."""
    leaf = logits.detach().clone().requires_grad_()
    owed = charged(estimator, Site("z", law_of(leaf)), cost_of, noise)[2]
    assert owed.sum().item() == 0.0
    return torch.autograd.grad(owed.sum(), leaf)[0]


def squares(t: float) -> CostOf:
    """(b - t)^2."""
    return lambda b: (b - t) ** 2


def grid_of(p: float, tied: bool, nodes: int = 60) -> Grid:
    rules = [tanh_sinh([1 - p], nodes)]
    return Grid(*(rules if tied else [*rules, tanh_sinh([], nodes)]))


def moments(estimator: REBAR, p: float, t: float = 0.45) -> tuple[float, float]:
    """Mean and variance of the gradient in the logit of one bit."""
    grid = grid_of(p, estimator.tied)
    logits = torch.full((grid.size,), math.log(p / (1 - p)))
    found = gradients(estimator, bits, logits, squares(t), grid)
    mean = (grid.weights * found).sum()
    return mean.item(), (grid.weights * (found - mean) ** 2).sum().item()


def best_scale(p: float, temperature: float, improved: bool, tied: bool) -> tuple[float, float]:
    """The scale with the least variance, and that variance: it is a parabola."""
    low, middle, high = (
        moments(REBAR(temperature=temperature, scale=s, improved=improved, tied=tied), p)[1]
        for s in (0.0, 1.0, 2.0)
    )
    bend = (low + high) / 2 - middle
    best = (low - middle + bend) / (2 * bend)
    return best, low - bend * best**2


PUBLISHED = [
    (0.5, 0.5, 2.265e-2, 1.594e-2, 0.02, 2.407e-2, 1.594e-2, 0.02),
    (0.2, 0.5, 1.808e-2, 1.277e-2, 0.02, 1.744e-2, 1.276e-2, 0.04),
    (0.2, 1.0, 1.465e-2, 1.276e-2, 0.05, 1.287e-2, 1.249e-2, 0.46),
    (0.2, 2.0, 1.333e-2, 1.275e-2, 0.14, 1.073e-2, 9.307e-3, 2.78),
    (0.05, 1.0, 5.441e-3, 4.203e-3, 0.03, 2.869e-3, 2.668e-3, 1.57),
    (0.05, 2.0, 4.460e-3, 4.200e-3, 0.11, 1.829e-3, 6.672e-4, 2.34),
]


@pytest.mark.float64
@pytest.mark.parametrize("row", PUBLISHED)
def test_variances_of_the_toy(row: tuple[float, ...]) -> None:
    """E (b - .45)^2, at scale 1 and at the best scale: standard, then improved and tied."""
    p, temperature = row[:2]
    for special, expected in ((False, row[2:5]), (True, row[5:8])):
        options = {"temperature": temperature, "improved": special, "tied": special}
        mean, variance = moments(REBAR(**options), p)
        assert mean == pytest.approx(0.1 * p * (1 - p), abs=1e-14)
        assert variance == pytest.approx(expected[0], rel=5e-4)
        scale, least = best_scale(p, temperature, special, special)
        assert least == pytest.approx(expected[1], rel=5e-4)
        assert scale == pytest.approx(expected[2], abs=0.006)


CATEGORIES = (0.9, -0.4, 0.1)


def bent(b: Tensor) -> Tensor:
    """A cost of one-hot values that is linear nowhere."""
    return 4.0 * b[..., 0] ** 3 - 3.0 * b[..., 1] ** 2 + 5.0 * b[..., 0] ** 2 * b[..., 2]


def one_hot_draws(estimator: Estimator, count: int = 250_000) -> Tensor:
    """Independent gradients in the logits of one site, ``[count, 3]``."""
    logits = torch.tensor(CATEGORIES).expand(count, 3)
    return gradients(estimator, one_hot, logits, bent, TorchNoise())


def one_hot_truth() -> Tensor:
    leaf = torch.tensor(CATEGORIES).requires_grad_()
    return torch.autograd.grad((leaf.softmax(0) * bent(torch.eye(3))).sum(), leaf)[0]


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
def test_categories_in_the_mean(tied: bool) -> None:
    draws = one_hot_draws(REBAR(temperature=0.7, tied=tied))
    assert not rejected(draws, one_hot_truth())
    assert rejected(1.05 * draws, one_hot_truth())


class Unnormalized(REBAR):
    """A mutant: z~ is drawn for logits that are not log-probabilities."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        with patch.object(rebar, "logits_by_element", lambda law: logits_by_element(law) + 0.7):
            return super().draw(site, noise)


class Detached(REBAR):
    """A mutant: the logits move z~ as they move z."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        turn = torch.ones_like(drawn.memory["turn"])
        return replace(drawn, memory={**drawn.memory, "turn": turn})


@pytest.mark.float64
@pytest.mark.parametrize("mutant", [Unnormalized, Detached])
def test_mutants_of_categories_fail(mutant: Callable[..., REBAR]) -> None:
    assert rejected(one_hot_draws(mutant(temperature=0.7)), one_hot_truth())


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("improved", [False, True])
def test_what_scale_and_temperature_follow_is_the_gradient_of_the_variance(
    improved: bool, tied: bool
) -> None:
    """Against central differences of the variance."""
    p, step = 0.2, 1e-4

    def variance(scale: float, temperature: float) -> float:
        options = {"scale": scale, "temperature": temperature}
        return moments(REBAR(improved=improved, tied=tied, **options), p)[1]

    def options_of(log: float) -> tuple[float, float]:
        return 0.7, 0.9 * math.exp(log)

    slope = (variance(0.7 + step, 0.9) - variance(0.7 - step, 0.9)) / (2 * step)
    warmth = (variance(*options_of(step)) - variance(*options_of(-step))) / (2 * step)
    estimator = REBAR(
        temperature=0.9, scale=0.7, learn_temperature=True, improved=improved, tied=tied
    )
    grid = grid_of(p, tied)
    logits = torch.full((grid.size,), math.log(p / (1 - p)), requires_grad=True)
    owed = charged(estimator, Site("z", bits(logits)), squares(0.45), grid)[2]
    learned = [estimator.scale, estimator.log_temperature]
    found = torch.autograd.grad(-(grid.weights * owed).sum(), learned)
    assert found[0].item() == pytest.approx(slope, rel=1e-6)
    assert found[1].item() == pytest.approx(warmth, rel=1e-5)


@pytest.mark.float64
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("law_of", [bits, one_hot])
def test_learning_reaches_nothing_but_what_is_learned(law_of: LawOf, tied: bool) -> None:
    """phi and theta have the same gradient, bit for bit, whatever is learned beside them."""
    found = []
    for learned in (False, True):
        pyro.set_rng_seed(3)
        logits = torch.randn(7, 3).requires_grad_()
        theta = torch.tensor([0.4, -0.2, 1.1], requires_grad=True)
        law = law_of(logits)
        site = Site("z", law.to_event(1) if law_of is bits else law)
        estimator = REBAR(tied=tied, learn_scale=learned, learn_temperature=learned)
        _, _, owed = charged(
            estimator, site, lambda b, w=theta: ((b * w).sum(-1) - 1) ** 3, TorchNoise()
        )
        found.append(torch.autograd.grad(owed.sum(), logits, retain_graph=learned)[0])
        if learned:
            own = torch.autograd.grad(owed.sum(), list(estimator.parameters()), retain_graph=True)
            assert all(float(g.abs()) > 0 for g in own)
        theirs = torch.autograd.grad(owed.sum(), theta, allow_unused=True)[0]
        assert theirs is None or torch.equal(theirs, torch.zeros(3))
    assert torch.equal(*found)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_that_are_all_but_certain(dtype: torch.dtype, improved: bool, tied: bool) -> None:
    """Logits of 80, in float32 too; uniforms at both ends of (0, 1)."""
    logits = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], dtype=dtype).repeat(50)
    estimator = REBAR(improved=improved, tied=tied, learn_temperature=True).to(dtype)
    for noise in (TorchNoise(), Ends(0.0), Ends(1.0)):
        found = gradients(estimator, bits, logits, squares(0.3), noise)
        assert found.dtype == dtype and found.isfinite().all()


class Ends:
    """Uniforms that were rounded to an end of the interval."""

    def __init__(self, end: float) -> None:
        self.end = end

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        return torch.full(shape, self.end, dtype=like.dtype)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categories_that_are_all_but_certain_or_impossible(dtype: torch.dtype, tied: bool) -> None:
    rows = [[80.0, 0.0, -80.0], [0.0, 0.0, -math.inf], [-70.0, -70.0, -70.0]]
    logits = torch.tensor(rows, dtype=dtype).repeat(50, 1)
    estimator = REBAR(tied=tied, learn_temperature=True).to(dtype)
    weights = torch.tensor([0.3, 1.0, -2.0], dtype=dtype)
    for noise in (TorchNoise(), Ends(0.0), Ends(1.0)):
        found = gradients(estimator, one_hot, logits, lambda b: (b * weights).sum(-1) ** 2, noise)
        assert found.isfinite().all()
        assert (found[1::3, 2] == 0).all()


def test_an_empty_batch() -> None:
    """Pyro's plates are never empty, and torch refuses one-hot laws of no rows; the rest serves."""
    estimator = REBAR(learn_temperature=True)
    assert gradients(estimator, bits, torch.zeros(0), squares(0.3), TorchNoise()).shape == (0,)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("p", [1e-30, 0.4, 1.0 - 1e-30])
def test_small_batches_and_extreme_probabilities(p: float, size: int) -> None:
    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((size,), 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(size))

    def guide() -> None:
        probs = pyro.param("p", torch.tensor(p), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(probs.expand(size)))

    loss = am.VariationalLoss(estimators={"z": REBAR(learn_temperature=True)})
    assert math.isfinite(loss.loss_and_grads(model, guide))
    assert all(q.grad is None or q.grad.isfinite().all() for q in loss.parameters())
    grad = pyro.get_param_store()["p"].unconstrained().grad
    assert grad is None or grad.isfinite()


def test_an_impossible_cost_spoils_nothing() -> None:
    logits = torch.zeros(4)
    costs = lambda b: torch.where(b == 1, -torch.inf, b)  # noqa: E731
    assert gradients(REBAR(), bits, logits, costs, TorchNoise()).isfinite().all()


def test_state_comes_back() -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    recipe = REBAR(scale=0.7, temperature=2.0, learn_temperature=True)
    first, second = (am.VariationalLoss(estimators={"z": recipe}) for _ in range(2))
    for loss in (first, second):
        loss.warm_up(program, program, ())
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.25)
    second.load_state_dict(first.state_dict())
    assert [v.item() for v in second.parameters()] == [v.item() for v in first.parameters()]
    assert len(list(first.parameters())) == 2
    assert recipe.scale.item() == pytest.approx(0.7)
    fixed = REBAR(learn_scale=False)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"scale", "log_temperature"}


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (dist.Categorical(logits=torch.zeros(3)), "OneHotCategorical.*am.RELAX"),
        (dist.Poisson(2.0), "Poisson has no relaxed values.*am.ScoreFunction"),
        (dist.Normal(0.0, 1.0), "Normal has no relaxed values"),
    ],
)
def test_sites_it_cannot_serve(law: Distribution, words: str) -> None:
    with pytest.raises(am.EstimatorError, match=f"'z'.*REBAR.*{words}"):
        am.VariationalLoss(estimators={"z": REBAR()}).loss(
            lambda: pyro.sample("z", law), lambda: pyro.sample("z", law)
        )


def test_the_improved_relaxation_is_one_of_bits() -> None:
    law = dist.OneHotCategorical(logits=torch.zeros(3))
    assert "leave improved out" in str(REBAR(improved=True).refusal(Site("z", law)))
    assert REBAR(improved=True).refusal(Site("z", bits(torch.zeros(3)))) is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, "0.5"])
def test_temperatures_are_positive(temperature: float) -> None:
    with pytest.raises(am.UsageError, match=r"REBAR\(temperature=.*above 0"):
        REBAR(temperature=temperature)


@pytest.mark.parametrize("scale", [math.inf, math.nan, "1"])
def test_scales_are_finite(scale: float) -> None:
    with pytest.raises(am.UsageError, match=r"REBAR\(scale=.*finite"):
        REBAR(scale=scale)


def test_repr() -> None:
    assert repr(REBAR()) == "REBAR()"
    assert repr(REBAR(scale=0.5, learn_scale=False)) == "REBAR(scale=0.5, learn_scale=False)"
