"""Measure-valued derivatives: exact in the mean for every row of the table.

Finite laws: every outcome of the estimator's noise is visited. Normal, Exponential, Gamma and
Poisson: the noise is integrated by a quadrature, as a weighted plate; and, with a cost that jumps,
10^6 draws are compared with closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from statistics import NormalDist

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site
from amortized.estimators.measure_valued import MeasureValued
from tests.laws.grids import Rule, tanh_sinh
from tests.laws.structures import DATA, EVERY, Structure, weight
from tests.laws.test_subsets import gradient, same_when_captured
from tests.laws.test_unbiased import error

Make = Callable[[], Estimator]

# --- finite laws: all outcomes --------------------------------------------------------------------

SERVED = sorted(set(EVERY) - {"subsampled", "control_flow", "buffer_write"})


@pytest.mark.parametrize("structure", SERVED)
def test_bits_in_every_structure(structure: str) -> None:
    pair = EVERY[structure]("bernoulli")
    estimators = {name: MeasureValued() for name in pair.latents}
    assert error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


@pytest.mark.parametrize("structure", ["plate", "event_dims", "control_flow", "buffer_write"])
def test_copy_by_copy(structure: str) -> None:
    pair = EVERY[structure]("bernoulli")
    loss = am.VariationalLoss(estimators={"z": MeasureValued()}, vectorize=False)
    assert error(loss, pair) < 1e-10


def test_two_particles() -> None:
    loss = am.VariationalLoss(am.ELBO(num_particles=2), {"z": MeasureValued()})
    assert error(loss, EVERY["plate"]("bernoulli")) < 1e-10


def vector(name: str, start: float) -> Tensor:
    return weight(name, [[start, -0.4, 0.9], [-0.7, start, 0.3]])


LAWS: dict[str, Callable[[str, float], Distribution]] = {
    "bits": lambda name, start: dist.Bernoulli(logits=vector(name, start)[:, 0]),
    "probabilities": lambda name, start: dist.Bernoulli(vector(name, start)[:, 0].sigmoid()),
    "categorical": lambda name, start: dist.Categorical(logits=vector(name, start)),
    "shares": lambda name, start: dist.Categorical(vector(name, start).softmax(-1)),
    "one-hot": lambda name, start: dist.OneHotCategorical(logits=vector(name, start)),
    "binomial": lambda name, start: dist.Binomial(2, logits=vector(name, start)[:, 0]),
    "binomial, probabilities": lambda name, start: dist.Binomial(
        2, vector(name, start)[:, 0].sigmoid()
    ),
}


def event(kind: str) -> Structure:
    """Two elements of an event, under a cost that does not factorize."""

    def model() -> None:
        z = pyro.sample("z", LAWS[kind]("b", -0.2).to_event(1))
        if kind == "one-hot":
            z = z @ torch.tensor([0.5, -1.0, 0.7])
        first, second = z[..., 0], z[..., 1]
        mean = first * weight("w", 0.7) - second**2 + first * second
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[0])

    def guide() -> None:
        pyro.sample("z", LAWS[kind]("a", 0.6).to_event(1))

    return Structure(model, guide)


@pytest.mark.parametrize("kind", sorted(LAWS))
def test_elements_of_an_event(kind: str) -> None:
    assert error(am.VariationalLoss(estimators={"z": MeasureValued()}), event(kind)) < 1e-10


OTHERS: dict[str, Make] = {
    "plain": am.ScoreFunction,
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "enumerate": am.Enumerate,
    "pathwise": am.Pathwise,
}
OURS: dict[str, Make] = {"bits": MeasureValued, "categories": MeasureValued}
EITHER = {**OTHERS, **OURS}


def chain(first: str, second: str) -> Structure:
    """z -> y in the guide, y -> z in the model."""

    def law(name: str, loc: Tensor) -> dist.Distribution:
        if name == "pathwise":
            return dist.Normal(loc, 0.8)
        if name == "categories":
            return dist.Categorical(logits=loc.unsqueeze(-1) * torch.tensor([0.3, -0.8, 0.5]))
        return dist.Bernoulli(logits=loc)

    def model() -> None:
        with pyro.plate("data", 1):
            y = pyro.sample("y", law(second, weight("c", 0.2).expand(1)))
            z = pyro.sample("z", law(first, weight("b", -0.3) * y))
            mean = (z - 0.5) ** 2 * weight("w", 0.7) + y
            pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:1])

    def guide() -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", law(first, weight("a", 0.4) * DATA[:1]))
            pyro.sample("y", law(second, weight("e", 0.3) * z + weight("f", 0.1)))

    return Structure(model, guide, ("z", "y"))


@pytest.mark.parametrize(
    ("first", "second"), sorted({*product(OURS, EITHER), *product(OTHERS, OURS)})
)
def test_upstream_and_downstream_of_others(first: str, second: str) -> None:
    estimators = {"z": EITHER[first](), "y": EITHER[second]()}
    assert error(am.VariationalLoss(estimators=estimators), chain(first, second)) < 1e-10


class Averaged(MeasureValued):
    """A mutant: all copies make the value."""

    base_only = False


class Forgetful(MeasureValued):
    """A mutant: a part of kappa is lost."""

    kept = 0.95

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        owed = super().surrogate(draw, cost)
        return None if owed is None else self.kept * owed


class Exchanged(MeasureValued):
    """A mutant: what the elements gained is mixed up."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        base, *others = draw.each(cost.copies)
        return super().surrogate(draw, Cost(torch.cat([base, *others[::-1]], draw.dim())))


class Together(MeasureValued):
    """A mutant: the other elements move along."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        base, moved = drawn.value[:1], drawn.value[1:]
        flipped = torch.where(moved == base, 1 - base, moved)
        object.__setattr__(drawn, "value", torch.cat([base, flipped]))
        return drawn


class Doubled(MeasureValued):
    """A mutant: log q of the ordinary draw is charged once more, with the wrong weight q."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor | None:
        owed, weight = super().surrogate(draw, cost), draw.log_prob.exp()
        more = (weight - weight.detach()).narrow(draw.dim(), 0, 1)
        return None if owed is None else owed + more * draw.each(cost.copies)[0]


@pytest.mark.parametrize("mutant", [Averaged, Forgetful, Exchanged, Together, Doubled])
def test_mutants_fail(mutant: Make) -> None:
    assert error(am.VariationalLoss(estimators={"z": mutant()}), event("bits")) > 1e-3


# --- continuous laws: quadrature ------------------------------------------------------------------


def points(law: Distribution) -> Rule:
    """Nodes and weights for the expectation under a scalar law."""
    if isinstance(law, dist.Poisson):
        nodes = torch.arange(60.0)
        return nodes, law.log_prob(nodes).exp().detach()
    # the trapezoid rule on the whole line: for smooth functions the error falls off exponentially
    if isinstance(law, dist.Normal):
        t = torch.linspace(-9.0, 9.0, 90)
        nodes, slope = law.loc.detach() + law.scale.detach() * t, law.scale.detach()
    else:
        t = torch.linspace(-30.0, 5.0, 480)
        nodes = slope = t.exp()
    return nodes, law.log_prob(nodes).exp().detach() * slope * (t[1] - t[0])


class Nodes:
    """A noise whose draws are those of a product of rules, on a plate of its size.

    Draws take the rules of ``laws`` in order, uniforms those of ``uniforms``.
    """

    def __init__(self, laws: Sequence[Rule], uniforms: Sequence[Rule]) -> None:
        rules = [*laws, *uniforms]
        self.nodes = torch.cartesian_prod(*[x for x, _ in rules]).reshape(-1, len(rules)).T
        weights = torch.cartesian_prod(*[w for _, w in rules]).reshape(-1, len(rules))
        self.weights, self.size = weights.prod(-1), weights.shape[0]
        self._draws, self._uniforms = list(self.nodes), list(self.nodes[len(laws) :])

    def sample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        return self._draws.pop(0)

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        return self._uniforms.pop(0)


def smooth(kind: str) -> tuple[Callable[..., Distribution], list[float], Distribution]:
    """A law by its parameters, where they are, and the prior."""
    return {
        "normal": (dist.Normal, [0.3, 0.8], dist.Normal(0.1, 1.3)),
        "poisson": (dist.Poisson, [2.3], dist.Poisson(1.5)),
        "gamma": (lambda rate: dist.Gamma(1.7, rate), [1.4], dist.Gamma(2.0, 1.0)),
        "gamma by scale": (lambda b: dist.Gamma(1.7, 1 / b), [0.6], dist.Gamma(2.0, 1.0)),
        "exponential": (dist.Exponential, [1.4], dist.Exponential(0.8)),
    }[kind]


# how many uniforms each asks for
UNIFORMS = {"normal": 2, "poisson": 0, "gamma": 1, "gamma by scale": 1, "exponential": 1}


def scalar_pair(kind: str, values: list[Tensor], size: int, weights: Tensor) -> Structure:
    """A scalar latent in each place of a plate, under a smooth cost."""
    make, _, prior = smooth(kind)

    def model() -> None:
        with pyro.plate("grid", size), poutine.scale(scale=weights):
            z = pyro.sample("z", prior)
            pyro.factor("bonus", torch.sin(2 * z) + 0.3 * z**2)

    def guide() -> None:
        with pyro.plate("grid", size), poutine.scale(scale=weights):
            pyro.sample("z", make(*values))

    return Structure(model, guide)


def integrated(kind: str) -> list[Tensor]:
    """The mean gradient in the parameters over the noise, the cost of each draw integrated."""
    make, start, _ = smooth(kind)
    law = make(*[torch.tensor(v) for v in start])
    noise = Nodes([points(law)], [tanh_sinh([], 56)] * UNIFORMS[kind])
    values = [torch.full((noise.size,), v, requires_grad=True) for v in start]
    pair = scalar_pair(kind, values, noise.size, noise.weights)
    loss = am.VariationalLoss(estimators={"z": MeasureValued()})
    with loss.looking("never"):
        # the first run looks for plates, with draws of its own
        loss.estimate(pair.model, pair.guide, (), {})
        value = loss.estimate(pair.model, pair.guide, (), {}, noise=noise).loss
    return [g.sum() for g in torch.autograd.grad(-value, values)]


def truth(kind: str) -> list[Tensor]:
    """The gradient of the expectation itself, by the quadrature of q over its nodes."""
    make, start, prior = smooth(kind)
    values = [torch.tensor(v, requires_grad=True) for v in start]
    law = make(*values)
    nodes, weights = points(make(*[v.detach() for v in values]))
    cost = prior.log_prob(nodes) - law.log_prob(nodes) + torch.sin(2 * nodes) + 0.3 * nodes**2
    ratio = (law.log_prob(nodes) - law.log_prob(nodes).detach()).exp()
    return list(torch.autograd.grad((weights * ratio * cost).sum(), values))


@pytest.mark.parametrize("kind", sorted(UNIFORMS))
def test_exact_by_quadrature(kind: str) -> None:
    found = integrated(kind)
    for ours, exact in zip(found, truth(kind), strict=True):
        assert abs(ours - exact) < 1e-10


def test_the_quadrature_sees_a_wrong_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Rayleigh of scale 1.05, and a Maxwell from an exponential of mean 1.1."""
    for part, factor in ((0, 1.05), (2, 1.05)):
        original = MeasureValued.draw

        def spoiled(self, site, noise, part=part, factor=factor, original=original):
            drawn = original(self, site, noise)
            drawn.value[1 + part] = (drawn.value[1 + part] - 0.3) * factor + 0.3
            return drawn

        with monkeypatch.context() as patch:
            patch.setattr(MeasureValued, "draw", spoiled)
            found = integrated("normal")
        errors = [abs(a - b) for a, b in zip(found, truth("normal"), strict=True)]
        assert max(errors) > 1e-2


# --- any law, a cost that jumps: 10^6 draws -------------------------------------------------------

DRAWS = 1_000_000
JUMP, PLACE = 2.0, 1.5


def above(law: Distribution) -> Tensor:
    """The probability of more than 1.5, differentiable in the parameters."""
    if isinstance(law, dist.Poisson):
        return 1 - torch.stack([law.log_prob(torch.tensor(v)).exp() for v in (0.0, 1.0)]).sum()
    if isinstance(law, dist.Gamma):
        return 1 - torch.special.gammainc(law.concentration.detach(), law.rate * PLACE)
    return 1 - law.cdf(torch.tensor(PLACE))


JUMPS = ["normal", "poisson", "gamma", "exponential"]
# ten coordinates are tested, a false alarm in one of 10^6 runs of all
LIMIT = NormalDist().inv_cdf(1 - 1e-6 / 20)


def scores(kind: str, estimator: Estimator, draws: int = DRAWS) -> list[float]:
    """Errors in standard errors, over independent draws in a plate."""
    make, start, prior = smooth(kind)
    values = [torch.full((draws,), v, requires_grad=True) for v in start]

    def model() -> None:
        with pyro.plate("draws", draws):
            z = pyro.sample("z", prior)
            pyro.factor("jump", JUMP * (z > PLACE).to(z.dtype))

    def guide() -> None:
        with pyro.plate("draws", draws):
            pyro.sample("z", make(*values))

    loss = am.VariationalLoss(estimators={"z": estimator})
    with loss.looking("never"):
        value = loss.estimate(model, guide, (), {}).loss
    found = torch.autograd.grad(-value, values)
    exact = [torch.tensor(v, requires_grad=True) for v in start]
    law = make(*exact)
    wanted = torch.autograd.grad(JUMP * above(law) - kl_divergence(law, prior), exact)
    return [
        float((g.mean() - t).abs() / (g.std() / math.sqrt(draws)))
        for g, t in zip(found, wanted, strict=True)
    ]


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("kind", JUMPS)
def test_jumps(kind: str, coupling: str) -> None:
    assert all(z < LIMIT for z in scores(kind, MeasureValued(coupling)))


class VeryForgetful(Forgetful):
    """A mutant that this many draws must see."""

    kept = 0.85


@pytest.mark.parametrize("kind", JUMPS)
def test_a_part_of_kappa_is_missed(kind: str) -> None:
    assert max(scores(kind, VeryForgetful())) > LIMIT


def test_pathwise_misses_the_jump() -> None:
    """What the test above measures."""
    assert max(scores("normal", am.Pathwise(), 100_000)) > LIMIT


# --- invariants -----------------------------------------------------------------------------------


def scalar(value: float | list[float], name: str = "r") -> Tensor:
    """A parameter that a law made without gradients does not hold on to."""
    return weight(name, value) * 1.0


EVERY_LAW: dict[str, Callable[[], Distribution]] = {
    **{name: lambda law=law: law("a", 0.6).to_event(1) for name, law in LAWS.items()},
    "normal": lambda: dist.Normal(scalar([0.3, -1.0], "m"), scalar([0.8, 1.3], "s")).to_event(1),
    "poisson": lambda: dist.Poisson(scalar(2.3)),
    "gamma": lambda: dist.Gamma(1.7, scalar(1.4)),
    "exponential": lambda: dist.Exponential(scalar(1.4)),
}


def under(law: Callable[[], Distribution], constant: float) -> Structure:
    """The guide's law is the prior; the cost is a constant."""

    def model() -> None:
        with torch.no_grad():
            prior = law()
        z = pyro.sample("z", prior)
        flat = z.sum(tuple(range(-len(prior.event_shape), 0))) if prior.event_shape else z
        pyro.factor("constant", 0.0 * flat + constant)

    def guide() -> None:
        pyro.sample("z", law())

    return Structure(model, guide)


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("kind", sorted(EVERY_LAW))
def test_no_gradient_at_the_posterior(kind: str, coupling: str) -> None:
    """Draw by draw, whatever the constant."""
    pair = under(EVERY_LAW[kind], 0.0)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        found = gradient(lambda: MeasureValued(coupling), pair)
        assert found and all(g.abs().max() < 1e-14 for g in found.values())


@pytest.mark.parametrize("kind", sorted(EVERY_LAW))
def test_a_constant_changes_nothing(kind: str) -> None:
    def shifted(constant: float) -> dict[str, Tensor]:
        pyro.set_rng_seed(3)
        return gradient(MeasureValued, under(EVERY_LAW[kind], constant))

    zero, far = shifted(0.0), shifted(-1e3)
    assert all((zero[name] - far[name]).abs().max() < 1e-10 for name in zero)


def test_one_bit_has_no_variance() -> None:
    pair = EVERY["plate"]("bernoulli")
    exact = gradient(am.Enumerate, pair)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        assert (gradient(MeasureValued, pair)["a"] - exact["a"]).abs() < 1e-14


def test_coupling_doubles_the_variance_of_loc_under_a_linear_cost() -> None:
    """kappa s (W + W') has variance (4 or 2) (2 - pi / 2) / (2 pi) at unit slope."""
    draws = 200_000
    loc = torch.zeros(draws, requires_grad=True)

    def model() -> None:
        with pyro.plate("draws", draws):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("slope", z)

    def guide() -> None:
        with pyro.plate("draws", draws):
            pyro.sample("z", dist.Normal(loc, 1.0))

    for coupling, count in (("coupled", 4), ("independent", 2)):
        loss = am.VariationalLoss(estimators={"z": MeasureValued({"loc": coupling})})
        with loss.looking("never"):
            value = loss.estimate(model, guide, (), {}).loss
        (found,) = torch.autograd.grad(-value, loc)
        expected = count * (2 - math.pi / 2) / (2 * math.pi)
        assert found.var().item() == pytest.approx(expected, rel=0.02)
        assert found.mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", ["one-hot", "binomial", "normal", "poisson", "gamma"])
def test_captured(kind: str) -> None:
    law = EVERY_LAW[kind]

    def model() -> None:
        with torch.no_grad():
            prior = law()
        z = pyro.sample("z", prior)
        pyro.factor(
            "cost",
            weight("w", 0.3) * z.reshape(*z.shape[: z.dim() - len(prior.event_shape)], -1).sum(-1),
        )

    def guide() -> None:
        pyro.sample("z", law())

    same_when_captured(Structure(model, guide), MeasureValued)
