"""Straight-through values: exact for one class of costs, by enumeration, and biased elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimators.base import Draw, Estimator, Noise, Site
from amortized.estimators.elements import linear_log_prob, logits_of
from amortized.estimators.straight_through import StraightThrough
from tests.laws.structures import DATA, EVERY, Structure, weight
from tests.laws.test_relaxed import on_the_toy
from tests.laws.test_unbiased import error
from tests.reference import OutcomeTree, estimate_law

Law = Callable[[Tensor], Any]


def toy_by_enumeration(estimator: Estimator, t: float, p: float) -> tuple[float, float]:
    """As `on_the_toy`, for estimators that draw bits."""
    logit = torch.tensor(math.log(p / (1 - p)), requires_grad=True)
    site = Site("b", dist.Bernoulli(logits=logit))

    def run(tree: OutcomeTree) -> Tensor:
        return torch.autograd.grad((estimator.draw(site, tree).value - t) ** 2, logit)[0]

    law = estimate_law(run)
    return float(law.mean), float(law.variance)


def test_straight_through_on_the_toy() -> None:
    """Quadratic cost, exact gradient 0.0160: the plain kind has the wrong sign."""
    plain, _ = toy_by_enumeration(StraightThrough(), 0.45, 0.2)
    reinmax, spread = toy_by_enumeration(StraightThrough("reinmax"), 0.45, 0.2)
    gumbel, _ = on_the_toy(StraightThrough("gumbel", temperature=0.5), 0.45, 0.2)
    assert plain == pytest.approx(-0.08, abs=1e-15)
    assert reinmax == pytest.approx(0.016, abs=1e-15)
    assert spread == pytest.approx(0.0449, abs=0.5e-4)
    assert gumbel == pytest.approx(-0.0358, abs=0.5e-4)


# --- straight-through: the classes of costs for which it is exact ---------------------------------


def bits(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits[0, :3]).to_event(1)


def categories(logits: Tensor) -> Any:
    return dist.OneHotCategorical(logits=logits).to_event(1)


COSTS: dict[str, tuple[Law, Callable[[Tensor], Tensor]]] = {
    "multilinear bits": (bits, lambda z: 0.7 * z.prod() - 1.3 * z[0] * z[2] + 0.4 * z[1]),
    "quadratic bits": (bits, lambda z: (z @ torch.tensor([0.7, -1.3, 0.4]) - 0.2) ** 2),
    "cubic bits": (bits, lambda z: (z @ torch.tensor([0.7, -1.3, 0.4]) - 0.2) ** 3),
    "multilinear categories": (
        categories,
        lambda z: z[0] @ torch.linspace(-1, 2, 16).reshape(4, 4).cos() @ z[1],
    ),
    "quadratic categories": (categories, lambda z: z.cumsum(-1).sum() * z[0, 1] + z[1, 2] ** 2),
    "quartic categories": (
        categories,
        lambda z: ((z * torch.linspace(-1, 2, 8).reshape(2, 4)).sum() + 0.3) ** 4,
    ),
}
EXACT = {
    "plain": ["multilinear bits", "multilinear categories"],
    "reinmax": [
        "multilinear bits",
        "multilinear categories",
        "quadratic bits",
        "quadratic categories",
    ],
}


def off_by(estimator: Estimator, cost: str) -> float:
    """How far the mean gradient is from the enumerated one."""
    make, f = COSTS[cost]
    leaf = torch.tensor([[0.4, -1.1, 2.0, 0.1], [0.3, 0.9, -0.5, -2.0]], requires_grad=True)

    def run(tree: OutcomeTree) -> Tensor:
        draw = estimator.draw(Site("z", make(leaf)), tree)
        assert ((draw.value == 0) | (draw.value == 1)).all()
        return torch.autograd.grad(f(draw.value), leaf)[0]

    def exactly(tree: OutcomeTree) -> Tensor:
        law = make(leaf)
        value = tree.sample(law)
        return torch.autograd.grad(law.log_prob(value) * f(value), leaf)[0]

    return float((estimate_law(run).mean - estimate_law(exactly).mean).abs().max())


@pytest.mark.parametrize("cost", sorted(COSTS))
@pytest.mark.parametrize("kind", sorted(EXACT))
def test_the_class_of_costs_for_which_straight_through_is_exact(kind: str, cost: str) -> None:
    found = off_by(StraightThrough(kind), cost)
    if cost in EXACT[kind]:
        assert found < 2e-15
    else:
        assert found > 1e-2


QUADRATIC = sorted(set(EVERY) - {"subsampled", "control_flow", "auxiliary", "chain"})


@pytest.mark.parametrize("structure", QUADRATIC)
def test_reinmax_is_exact_in_every_structure_with_quadratic_costs(structure: str) -> None:
    """theta, phi and everything that plates, masks and scales do."""
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators={n: StraightThrough("reinmax") for n in pair.latents})
    assert error(loss, pair) < 1e-14


@pytest.mark.parametrize("structure", ["control_flow", "auxiliary", "chain"])
@pytest.mark.parametrize("kind", ["plain", "reinmax"])
def test_straight_through_is_biased_where_it_says(kind: str, structure: str) -> None:
    """A branch, an entropy and a prior that are not quadratic in the bit."""
    pair = EVERY[structure]("bernoulli")
    estimator = StraightThrough(kind)
    assert "exact only" in estimator.bias
    loss = am.VariationalLoss(estimators={name: StraightThrough(kind) for name in pair.latents})
    assert error(loss, pair) > 1e-4


def linear_plate(scale: float, mask: Tensor | bool) -> Structure:
    """Bits whose costs are products with each other."""

    def model() -> None:
        with pyro.plate("data", 20, subsample=torch.tensor([3, 11])), poutine.mask(mask=mask):
            with poutine.scale(scale=scale):
                z = pyro.sample(
                    "z", dist.Bernoulli(logits=weight("b", [-0.3, 0.5]).expand(2, 2)).to_event(1)
                )
            cost = weight("w", 0.7) * z[..., 0] * z[..., 1] - weight("v", 1.2) * z[..., 0]
            pyro.factor("cost", cost * DATA)

    def guide() -> None:
        with pyro.plate("data", 20, subsample=torch.tensor([3, 11])), poutine.mask(mask=mask):
            with poutine.scale(scale=scale):
                logits = weight("a", [0.4, -0.6]) * DATA.unsqueeze(-1)
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return Structure(model, guide)


def linear_chain() -> Structure:
    """z -> y, each with costs linear in both; the model shares y's law, whose terms cancel."""

    def laws(z: Tensor) -> Any:
        return dist.Bernoulli(probs=torch.sigmoid(weight("s", 0.2)) * (0.3 + 0.6 * z))

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3)))
        y = pyro.sample("y", laws(z))
        pyro.factor("cost", weight("w", 0.7) * z - weight("v", 1.2) * y)

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4)))
        pyro.sample("y", laws(z))

    return Structure(model, guide, ("z", "y"))


OTHERS: dict[str, Callable[[], Estimator]] = {
    "plain": StraightThrough,
    "reinmax": lambda: StraightThrough("reinmax"),
    "enumerate": am.Enumerate,
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "score": am.ScoreFunction,
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("second", sorted(OTHERS))
@pytest.mark.parametrize("first", sorted(OTHERS))
def test_straight_through_up_and_downstream_of_others(
    first: str, second: str, vectorize: bool
) -> None:
    if not {first, second} & {"plain", "reinmax"}:
        return
    estimators = {"z": OTHERS[first](), "y": OTHERS[second]()}
    loss = am.VariationalLoss(estimators=estimators, vectorize=vectorize)
    assert error(loss, linear_chain()) < 1e-14


@pytest.mark.parametrize("hidden", [False, True])
def test_plain_is_exact_for_multilinear_costs(hidden: bool) -> None:
    """In a plate of which the caller names two, with annealed latents, and masked."""
    pair = linear_plate(0.3, torch.tensor([True, False]) if hidden else True)
    assert error(am.VariationalLoss(estimators={"z": StraightThrough()}), pair) < 1e-14


@pytest.mark.parametrize("kind", ["plain", "reinmax"])
def test_particles(kind: str) -> None:
    loss = am.VariationalLoss(am.ELBO(num_particles=2), StraightThrough(kind))
    assert error(loss, linear_chain()) < 1e-14


def quadratic_one_hot() -> Structure:
    """Two one-hot vectors a datum, a quadratic likelihood, a prior and an entropy."""

    def law(name: str, value: list[float]) -> Any:
        logits = weight(name, value).reshape(2, 3) * DATA[:, None, None]
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", law("b", [0.3, -0.2, 0.9, 0.1, 0.0, -0.7]))
            mean = (z * weight("w", [0.7, -1.1, 0.4, 0.2, 1.5, -0.3]).reshape(2, 3)).sum((-1, -2))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law("a", [0.4, -0.6, 0.1, -1.0, 0.5, 0.3]))

    return Structure(model, guide)


@pytest.mark.parametrize("kind", ["plain", "reinmax"])
def test_reinmax_is_exact_for_one_hot_vectors_in_a_program(kind: str) -> None:
    """The slope of log p and log q at 0 is that at 1; the plain kind is not exact here."""
    found = error(am.VariationalLoss(estimators=StraightThrough(kind)), quadratic_one_hot())
    assert found < 1e-14 if kind == "reinmax" else found > 1e-3


class FullEntropy(StraightThrough):
    """A mutant: log q has no slope in the value."""

    def log_q(self, draw: Draw) -> Tensor:
        return super().log_q(draw).detach()


class NoPrior(StraightThrough):
    """A mutant: log p has no slope in the value."""

    def density(self, law: Any, value: Tensor) -> Tensor:
        return linear_log_prob(law, value.detach())


class Midpoint(StraightThrough):
    """A mutant: the middle of mean and value alone, without what it counts twice."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        hard = noise.sample(site.law, site=site.name)
        logits = logits_of(site.law).expand(hard.shape)
        half = torch.sigmoid(logits)
        middle = (half.detach() + hard) / 2
        change = logits - logits.detach()
        return Draw(site, hard + 2 * middle * (1 - middle) * change)


class Attached(StraightThrough):
    """A mutant: the gradient of the mean for the kind that promises more."""

    def __init__(self) -> None:
        super().__init__("plain")


MUTANTS: dict[str, Callable[[], Estimator]] = {
    "no slope of log q": lambda: FullEntropy("reinmax"),
    "no slope of log p": lambda: NoPrior("reinmax"),
    "the middle alone": lambda: Midpoint("reinmax"),
    "plain for ReinMax": Attached,
    "gumbel for ReinMax": lambda: StraightThrough("gumbel"),
}


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_fail(mutant: str) -> None:
    """The law of quadratic costs would notice; the last is measured with its own noise."""
    if mutant == "gumbel for ReinMax":
        mean, _ = on_the_toy(MUTANTS[mutant](), 0.45, 0.2)
        assert abs(mean - 0.016) > 1e-2
        return
    pair = EVERY["event_dims"]("bernoulli")
    assert error(am.VariationalLoss(estimators={"z": MUTANTS[mutant]()}), pair) > 1e-3
