"""Relaxed values: the mean gradient is exactly that of the relaxed objective that was named.

The objective is integrated over logits against torch's own densities, the estimator over its
uniforms: two quadratures that share no formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Bernoulli, Categorical
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.nn.functional import softplus

import amortized as am
from amortized.estimators.base import Draw, Estimator, Noise, Site
from amortized.estimators.elements import linear_log_prob
from amortized.estimators.relaxed import Relaxed
from tests.laws.grids import Grid, Rule, tanh_sinh
from tests.laws.structures import Program, weight
from tests.laws.test_unbiased import leaves
from tests.reference import OutcomeTree, estimate_law

STEP = 0.05


def line(temperature: float, step: float = STEP) -> Tensor:
    """Nodes of the trapezoidal rule for logits at a temperature; its error is beyond rounding."""
    return torch.arange(-45 / temperature, 45 / temperature, step)


# --- one bit: minimize (b - t)^2 -----------------------------------------------------------------


def on_the_toy(estimator: Estimator, t: float, p: float) -> tuple[float, float]:
    """Mean and variance of the gradient of (b - t)^2 in the logit, over the bit's own noise."""
    grid = Grid(tanh_sinh([1 - p], nodes=600))
    logits = torch.full((grid.size,), math.log(p / (1 - p)), requires_grad=True)
    value = estimator.draw(Site("b", Bernoulli(logits=logits)), grid).value
    (gradient,) = torch.autograd.grad(((value - t) ** 2).sum(), logits)
    mean = (grid.weights * gradient).sum()
    return float(mean), float((grid.weights * (gradient - mean) ** 2).sum())


def toy_by_density(t: float, p: float, temperature: float) -> float:
    """The gradient of the mean of (y - t)^2 under torch's density of logit y, integrated."""
    logit = torch.tensor(math.log(p / (1 - p)), requires_grad=True)
    x = line(temperature)
    law = LogitRelaxedBernoulli(torch.tensor(temperature), logits=logit, validate_args=False)
    mean = STEP * (law.log_prob(x).exp() * (torch.sigmoid(x) - t) ** 2).sum()
    return float(torch.autograd.grad(mean, logit)[0])


# t, p, temperature: mean and variance as they were computed before, rounded
CONCRETE = {
    (0.45, 0.5, 0.1): (0.02480, 8.6e-2),
    (0.45, 0.5, 0.5): (0.02146, 1.4e-2),
    (0.45, 0.5, 1.0): (0.01667, 4.8e-3),
    (0.45, 0.5, 2.0): (0.01073, 1.0e-3),
    (0.45, 0.2, 0.1): (0.00655, 5.4e-2),
    (0.45, 0.2, 0.5): (-0.01883, 9.3e-3),
    (0.45, 0.2, 1.0): (-0.02312, 3.3e-3),
    (0.45, 0.2, 2.0): (-0.01303, 8.0e-4),
    (0.45, 0.05, 0.1): (0.00050, 1.6e-2),
    (0.45, 0.05, 0.5): (-0.01688, 3.2e-3),
    (0.45, 0.05, 1.0): (-0.03049, 1.3e-3),
    (0.45, 0.05, 2.0): (-0.02740, 3.2e-4),
    (0.499, 0.2, 0.1): (-0.00914, 5.3e-2),
    (0.499, 0.2, 0.5): (-0.03417, 9.3e-3),
    (0.499, 0.2, 1.0): (-0.03665, 3.2e-3),
    (0.499, 0.2, 2.0): (-0.02273, 7.5e-4),
}


@pytest.mark.parametrize(("t", "p", "temperature"), sorted(CONCRETE))
def test_concrete_on_the_toy(t: float, p: float, temperature: float) -> None:
    mean, variance = on_the_toy(Relaxed(temperature), t, p)
    expected, spread = CONCRETE[t, p, temperature]
    assert abs(mean - toy_by_density(t, p, temperature)) < 1e-12
    assert abs(mean - expected) < 1e-5
    assert float(f"{variance:.1e}") == spread


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.2, -0.0021), (0.1, 0.0066), (0.05, 0.0112), (0.02, 0.0141), (0.01, 0.0150)],
)
def test_the_bias_is_of_the_order_of_the_temperature(temperature: float, expected: float) -> None:
    """The exact gradient is 0.0160: colder is closer."""
    mean, _ = on_the_toy(Relaxed(temperature), 0.45, 0.2)
    assert abs(mean - expected) < 0.51e-4
    assert 0.0 < 0.0160 - mean < 0.1 * temperature


# --- whole programs -------------------------------------------------------------------------------

TERMS = ("analytic", "discrete", "relaxed")
START = {"a": 0.4, "b": -0.7, "w": 0.9, "e": 1.3, "f": -0.5}


def gradients(
    pair: tuple[Program, Program],
    estimators: Mapping[str, Estimator],
    noise: Any,
    *,
    tree: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """The mean gradient of the bound, in the programs' parameters and the estimators' own."""
    loss = am.VariationalLoss(estimators=estimators, **options)
    loss.warm_up(*pair, ())
    params = {**leaves(), **dict(loss.named_parameters())}

    def run(source: Any) -> list[Tensor]:
        bound = -loss.estimate(*pair, (), {}, noise=source).loss
        found = torch.autograd.grad(bound, list(params.values()), allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    found = estimate_law(lambda t: run(noise(t))).mean if tree else run(noise)
    return dict(zip(params, found, strict=True))


def expected(
    objective: Callable[..., Tensor], start: Mapping[str, float] = START, **more: float
) -> dict[str, Tensor]:
    """The gradient of a formula in its arguments."""
    params = {k: torch.tensor(v, requires_grad=True) for k, v in {**start, **more}.items()}
    found = torch.autograd.grad(objective(**params), list(params.values()), allow_unused=True)
    return {k: g for k, g in zip(params, found, strict=True) if g is not None}


def same(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], within: float) -> None:
    learned = {k: v for k, v in found.items() if k.endswith("log_temperature")}
    by_name = {**found, **({"lam": sum(learned.values())} if learned else {})}
    assert max(float(g.abs().max()) for g in truth.values()) > 1e-2
    for name, gradient in truth.items():
        assert abs(by_name[name] - gradient).max() < within, name


def bit_density(lam: Any, logit: Tensor, x: Tensor) -> Tensor:
    return LogitRelaxedBernoulli(lam, logits=logit, validate_args=False).log_prob(x)


def bit_terms(terms: str, x: Tensor, q: Tensor, p: Tensor, lam: Any, prior: Any) -> Tensor:
    """log p - log q of one bit at a relaxed value, from the definitions."""
    if terms == "relaxed":
        return bit_density(prior, p, x) - bit_density(lam, q, x)
    if terms == "discrete":
        y = torch.sigmoid(x)
        return y * (p - q) - softplus(p) + softplus(q)
    s = torch.sigmoid(q)
    return -(s * (q - p) + softplus(p) - softplus(q)) + 0 * x


def one_bit(grid: Grid, terms_count: float, hidden: bool) -> tuple[Program, Program]:
    """A bit whose two terms are scaled, or masked away, and a smooth cost."""

    def both(grid_size: int) -> Any:
        return poutine.mask(mask=torch.tensor(not hidden).expand(grid_size))

    def model() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            with poutine.scale(scale=terms_count), both(grid.size):
                z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.7).expand(grid.size)))
            pyro.factor("cost", weight("w", 0.9) * (z - 0.3) ** 2 + torch.sin(2 * z))

    def guide() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            with poutine.scale(scale=terms_count), both(grid.size):
                pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4).expand(grid.size)))

    return model, guide


def one_bit_by_density(terms: str, lam0: float, count: float, prior: float | None) -> Any:
    def objective(a: Tensor, b: Tensor, w: Tensor, lam: Tensor, **_: Tensor) -> Tensor:
        x, temperature = line(lam0), lam.exp()
        mass = STEP * bit_density(temperature, a, x).exp()
        y = torch.sigmoid(x)
        own = temperature if prior is None else torch.tensor(prior)
        cost = w * (y - 0.3) ** 2 + torch.sin(2 * y)
        return (mass * (cost + count * bit_terms(terms, x, a, b, temperature, own))).sum()

    return objective


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("count", [1.0, 0.3, 0.0])
def test_one_bit(terms: str, count: float, temperature: float) -> None:
    """theta, phi and a learned temperature; all terms, annealed, and masked."""
    grid = Grid(tanh_sinh([], nodes=400))
    pair = one_bit(grid, count or 1.0, hidden=count == 0.0)
    estimator = Relaxed(temperature, learned=True, terms=terms)
    truth = expected(one_bit_by_density(terms, temperature, count, None), lam=math.log(temperature))
    same(gradients(pair, {"z": estimator}, grid), truth, 1e-10)


@pytest.mark.parametrize("prior", [0.3, 2.0])
def test_a_prior_with_a_temperature_of_its_own(prior: float) -> None:
    grid = Grid(tanh_sinh([], nodes=400))
    estimator = Relaxed(0.7, learned=True, terms="relaxed", prior_temperature=prior)
    truth = expected(one_bit_by_density("relaxed", 0.7, 1.0, prior), lam=math.log(0.7))
    same(gradients(one_bit(grid, 1.0, False), {"z": estimator}, grid), truth, 1e-10)


@pytest.mark.parametrize("end", [0.5, 3.0])
def test_an_annealed_temperature_is_the_geometric_mean_half_way(end: float) -> None:
    grid = Grid(tanh_sinh([], nodes=400))
    estimator = Relaxed(1.0, end=end, steps=2, terms="relaxed")
    estimator.advance()
    half = math.sqrt(end)
    truth = expected(one_bit_by_density("relaxed", half, 1.0, None), lam=math.log(half))
    del truth["lam"]
    same(gradients(one_bit(grid, 1.0, False), {"z": estimator}, grid), truth, 1e-10)


def two_bits(grid: Grid, where: str) -> tuple[Program, Program]:
    """One event with a joint cost, or a chain z -> y; the second bit's law then depends on z."""

    def laws(first: str, second: str) -> Any:
        one, two = weight(first, START[first]), weight(second, START[second])
        if where == "event":
            return dist.Bernoulli(logits=torch.stack([one, two]).expand(grid.size, 2)).to_event(1)
        return lambda z: dist.Bernoulli(logits=two * z + one)

    def draw(first: str, second: str) -> Tensor:
        law = laws(first, second)
        if where == "event":
            return pyro.sample("z", law)
        z = pyro.sample("z", law(torch.zeros(grid.size)))
        return torch.stack([z, pyro.sample("y", law(z))], -1)

    def model() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            z = draw("b", "f")
            pyro.factor("cost", -weight("w", 0.9) * (z[..., 0] + 2 * z[..., 1] - 1.2) ** 2)

    def guide() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            draw("a", "e")

    return model, guide


def two_bits_by_density(terms: str, where: str, lam0: float) -> Any:
    def objective(a: Tensor, b: Tensor, w: Tensor, e: Tensor, f: Tensor) -> Tensor:
        step, lam = 0.4, torch.tensor(lam0)
        x1, x2 = torch.meshgrid(line(lam0, step), line(lam0, step), indexing="ij")
        y1, y2 = torch.sigmoid(x1), torch.sigmoid(x2)
        q2, p2 = (e, f) if where == "event" else (e * y1 + a, f * y1 + b)
        mass = step**2 * (bit_density(lam, a, x1) + bit_density(lam, q2, x2)).exp()
        cost = -w * (y1 + 2 * y2 - 1.2) ** 2
        own = bit_terms(terms, x1, a, b, lam, lam) + bit_terms(terms, x2, q2, p2, lam, lam)
        return (mass * (cost + own)).sum()

    return objective


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("where", ["event", "chain"])
def test_two_bits(where: str, terms: str) -> None:
    """Relaxed up- and downstream of itself, and inside one event with a joint cost."""
    grid = Grid(tanh_sinh([], nodes=120), tanh_sinh([], nodes=120))
    found = gradients(two_bits(grid, where), {"*": Relaxed(1.0, terms=terms)}, grid)
    same(found, expected(two_bits_by_density(terms, where, 1.0)), 1e-10)


# --- one-hot vectors ------------------------------------------------------------------------------


def one_hot(grid: Grid) -> tuple[Program, Program]:
    def model() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            logits = weight("b", [0.5, -0.3, 0.1]).expand(grid.size, 3)
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits))
            pyro.factor("cost", weight("w", 0.9) * z[..., 0] * z[..., 1] - torch.cos(2 * z[..., 2]))

    def guide() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            logits = weight("a", [0.4, -0.6, 0.2]).expand(grid.size, 3)
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    return model, guide


def one_hot_by_density(terms: str, lam0: float, prior: float) -> dict[str, Tensor]:
    """Over the two differences of log y, for which torch's density is the density."""
    a = torch.tensor([0.4, -0.6, 0.2], requires_grad=True)
    b = torch.tensor([0.5, -0.3, 0.1], requires_grad=True)
    w, lam = torch.tensor(0.9, requires_grad=True), torch.tensor(math.log(lam0), requires_grad=True)
    step = 0.4
    grid = torch.cartesian_prod(line(lam0, step), line(lam0, step))
    x = torch.cat([grid, torch.zeros(len(grid), 1)], -1).log_softmax(-1)
    y = x.exp()
    log_q = ExpRelaxedCategorical(lam.exp(), logits=a, validate_args=False).log_prob(x)
    if terms == "relaxed":
        theirs = ExpRelaxedCategorical(torch.tensor(prior), logits=b, validate_args=False)
        own = theirs.log_prob(x) - log_q
    elif terms == "discrete":
        own = y @ (b.log_softmax(-1) - a.log_softmax(-1))
    else:
        own = -(a.softmax(-1) @ (a.log_softmax(-1) - b.log_softmax(-1)))
    cost = w * y[:, 0] * y[:, 1] - torch.cos(2 * y[:, 2])
    mean = step**2 * (log_q.exp() * (cost + own)).sum()
    found = torch.autograd.grad(mean, [a, b, w, lam])
    return dict(zip(["a", "b", "w", "lam"], found, strict=True))


@pytest.mark.parametrize("terms", TERMS)
def test_one_hot(terms: str) -> None:
    grid = Grid(*[tanh_sinh([], nodes=48)] * 3)
    prior = {"prior_temperature": 0.6} if terms == "relaxed" else {}
    estimator = Relaxed(1.0, learned=True, terms=terms, **prior)
    same(
        gradients(one_hot(grid), {"z": estimator}, grid), one_hot_by_density(terms, 1.0, 0.6), 1e-8
    )


# --- beside other estimators ----------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Outcomes of draws are listed; uniforms are the nodes of a rule, listed or on a grid."""

    tree: OutcomeTree
    rules: tuple[Rule, ...]
    on_grid: bool

    def sample(self, fn: Any, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        return self.tree.sample(fn, sample_shape, site=site)

    def rsample(self, fn: Any, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        raise AssertionError(site)

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        if self.on_grid:
            return Grid(*self.rules).uniform(shape, like, site=site)
        nodes, weights = self.rules[0]
        return nodes[self.tree.sample(Categorical(probs=weights).expand(torch.Size(shape)))]


OTHERS: dict[str, Callable[[], Estimator]] = {
    "enumerate": am.Enumerate,
    "leave one out": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "score": am.ScoreFunction,
}


def beside(first: str, second: str, grid: Grid | None) -> tuple[Program, Program]:
    """first -> second, one of them relaxed; that one in a plate of nodes if there is a grid."""

    def nodes() -> Any:
        assert grid is not None
        return pyro.plate("grid", grid.size, dim=-1)

    def draw(side: str) -> tuple[Tensor, Tensor]:
        one = pyro.sample(first, dist.Bernoulli(logits=weight("ab"[side == "model"], 0.4)))
        logits = weight("ef"[side == "model"], 1.3) * one - 0.2
        if grid is None:
            return one, pyro.sample(second, dist.Bernoulli(logits=logits))
        with nodes(), poutine.scale(scale=grid.weights):
            return one, pyro.sample(second, dist.Bernoulli(logits=logits))

    def model() -> None:
        one, two = draw("model")
        cost = -weight("w", 0.9) * (one + 2 * two - 1.2) ** 2
        if grid is None:
            pyro.factor("cost", cost)
            return
        with nodes(), poutine.scale(scale=grid.weights):
            pyro.factor("cost", cost)

    return model, lambda: draw("guide")


def beside_by_density(terms: str, relaxed_first: bool) -> Any:
    """Over the logit of the relaxed bit and both values of the other."""

    def objective(a: Tensor, b: Tensor, w: Tensor, e: Tensor, f: Tensor) -> Tensor:
        lam, x, total = torch.tensor(1.0), line(1.0), torch.zeros(())
        y = torch.sigmoid(x)
        for bit in (0.0, 1.0):
            one, two = (y, bit) if relaxed_first else (bit, y)
            q2, p2 = e * one - 0.2, f * one - 0.2
            soft_q, soft_p = (a, b) if relaxed_first else (q2, p2)
            hard_q, hard_p = (q2, p2) if relaxed_first else (a, b)
            log_q = bit * hard_q - softplus(hard_q)
            mass = STEP * (bit_density(lam, soft_q, x) + log_q).exp()
            own = bit_terms(terms, x, soft_q, soft_p, lam, lam)
            own = own + bit * hard_p - softplus(hard_p) - log_q
            total = total + (mass * (own - w * (one + 2 * two - 1.2) ** 2)).sum()
        return total

    return objective


BESIDE = {"a": 0.4, "b": 0.4, "w": 0.9, "e": 1.3, "f": 1.3}


@pytest.mark.parametrize("other", sorted(OTHERS))
@pytest.mark.parametrize("terms", ["analytic", "relaxed"])
def test_downstream_of_another(terms: str, other: str) -> None:
    """Each copy of the first site has its own relaxed value, all over the same grid."""
    copies = OTHERS[other]().copies(Site("b", Bernoulli(0.5)))
    rules = (tanh_sinh([], nodes=60),) * copies
    grid = Grid(*rules)
    found = gradients(
        beside("b", "z", grid),
        {"b": OTHERS[other](), "z": Relaxed(1.0, terms=terms)},
        lambda tree: Mixed(tree, rules, True),
        tree=True,
    )
    same(found, expected(beside_by_density(terms, False), BESIDE), 1e-10)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("other", sorted(OTHERS))
def test_upstream_of_another(other: str, vectorize: bool) -> None:
    """The law of the second site depends on the relaxed value."""
    rules = (tanh_sinh([], nodes=60),)
    found = gradients(
        beside("z", "b", None),
        {"z": Relaxed(1.0, terms="relaxed"), "b": OTHERS[other]()},
        lambda tree: Mixed(tree, rules, False),
        tree=True,
        vectorize=vectorize,
    )
    same(found, expected(beside_by_density("relaxed", True), BESIDE), 1e-10)


# --- mutants --------------------------------------------------------------------------------------


class Deaf(Relaxed):
    """A mutant: the value carries no gradient."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        drawn = super().draw(site, noise)
        return Draw(site, drawn.value.detach(), memory=drawn.memory, ordinary=0)


class Rounded(Relaxed):
    """A mutant: log p as the linear function, log q as a density."""

    def log_p(self, law: Any, draw: Draw) -> Tensor:
        return linear_log_prob(law, draw.value)


class HalfEntropy(Relaxed):
    """A mutant: the temperature's own part in log q is lost."""

    def log_q(self, draw: Draw) -> Tensor:
        return super().log_q(draw).detach()


class SharedTemperature(Relaxed):
    """A mutant: the prior has the temperature of the guide."""

    def log_p(self, law: Any, draw: Draw) -> Tensor:
        given, self.prior_temperature = self.prior_temperature, None
        try:
            return super().log_p(law, draw)
        finally:
            self.prior_temperature = given


@pytest.mark.parametrize("mutant", [Deaf, Rounded, HalfEntropy, SharedTemperature])
def test_mutants_fail(mutant: type[Relaxed]) -> None:
    grid = Grid(tanh_sinh([], nodes=400))
    truth = expected(one_bit_by_density("relaxed", 0.7, 1.0, 2.0), lam=math.log(0.7))
    options: dict[str, Any] = {"learned": True, "terms": "relaxed", "prior_temperature": 2.0}
    found = gradients(one_bit(grid, 1.0, False), {"z": Relaxed(0.7, **options)}, grid)
    same(found, truth, 1e-10)
    grid.used = 0
    wrong = gradients(one_bit(grid, 1.0, False), {"z": mutant(0.7, **options)}, grid)
    with pytest.raises(AssertionError, match=r"^(a|b|w|lam)"):
        same(wrong, truth, 1e-3)
