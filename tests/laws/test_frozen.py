"""Sticking the landing: unbiased, and exactly zero where the guide is the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

import amortized as am
from amortized.estimators.base import Draw, Estimator
from tests.laws.structures import weight

X = torch.tensor([1.3, -0.4], dtype=torch.float64)
Make = Callable[[], Estimator]


class Hermite:
    """Standard normal noise on a grid: one node of the product rule for each element of a plate."""

    def __init__(self, sites: list[str], nodes: int = 12) -> None:
        off = torch.tensor([math.sqrt(k) for k in range(1, nodes)], dtype=torch.float64).diag(1)
        values, vectors = torch.linalg.eigh(off + off.T)
        count = len(sites)
        grid = torch.cartesian_prod(*[values] * count).reshape(-1, count)
        mass = torch.cartesian_prod(*[vectors[0] ** 2] * count).reshape(-1, count)
        self.noise = dict(zip(sites, grid.T, strict=True))
        self.weights = mass.prod(-1)
        self.size = len(grid)

    def sample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        raise AssertionError(site)

    def rsample(self, fn: Distribution, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        return fn.mean + fn.stddev * self.noise[site]

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        raise AssertionError(site)


def chain(grid: Hermite, far: float) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two normal layers; with ``far=0`` the guide is the posterior, drawn upstream first."""

    def model() -> None:
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            z = pyro.sample("z", dist.Normal(torch.zeros(grid.size), 1.0))
            y = pyro.sample("y", dist.Normal(z, 1.0))
            mean = y + far * weight("w", 0.7) * y**2
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.full((grid.size,), 1.3))

    def guide() -> None:
        a, s = weight("a", 1 / 3 + far), weight("s", math.sqrt(2 / 3) * (1 - far))
        b, c, t = weight("b", 0.5 - far), weight("c", 0.5), weight("t", math.sqrt(0.5))
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            z = pyro.sample("z", dist.Normal((a * 1.3).expand(grid.size), s))
            pyro.sample("y", dist.Normal(b * z + c * 1.3, t))

    return model, guide


def gradients(make: Make, far: float) -> dict[str, Tensor]:
    """Of the bound in every parameter, integrated over both layers."""
    pyro.clear_param_store()
    grid = Hermite(["z", "y"])
    model, guide = chain(grid, far)
    loss = am.VariationalLoss(estimators={"*": make()})
    loss.warm_up(model, guide, ())
    store = pyro.get_param_store()
    leaves = {name: store[name].unconstrained() for name in store}
    bound = -loss.estimate(model, guide, (), {}, noise=grid).loss
    found = torch.autograd.grad(bound, list(leaves.values()), allow_unused=True)
    zero = torch.zeros(())
    return {n: zero if g is None else g for n, g in zip(leaves, found, strict=True)}


def largest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_unbiased_in_a_hierarchical_guide() -> None:
    """The integrands are polynomials, so the quadrature is exact."""
    plain = gradients(am.Pathwise, 0.2)
    assert max(float(g.abs()) for g in plain.values()) > 0.1
    assert largest(gradients(am.DoublyReparameterized, 0.2), plain) < 1e-12


class DetachedLogQ(am.Pathwise):
    """A mutant: the way through the value is lost along with the direct one."""

    attached = False


def test_a_mutant_is_biased() -> None:
    assert largest(gradients(DetachedLogQ, 0.2), gradients(am.Pathwise, 0.2)) > 1e-2


class DetachedParameters(am.Pathwise):
    """A mutant: freezes each site's own parameters, and with them the way through its parents."""

    def log_q(self, draw: Draw) -> Tensor:
        law = draw.site.law
        return dist.Normal(law.mean.detach(), law.stddev.detach()).log_prob(draw.value)


def per_draw(make: Make) -> float:
    """The largest gradient in the guide of single draws at the posterior."""
    pyro.clear_param_store()

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            y = pyro.sample("y", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(y, 1.0), obs=X)

    def guide() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(weight("a", 1 / 3) * X, weight("s", (2 / 3) ** 0.5)))
            pyro.sample("y", dist.Normal(weight("b", 0.5) * z + 0.5 * X, weight("t", 0.5**0.5)))

    loss = am.VariationalLoss(estimators={"*": make()})
    worst = 0.0
    for _ in range(5):
        bound = loss.differentiable_loss(model, guide)
        store = pyro.get_param_store()
        leaves = [store[name].unconstrained() for name in store]
        found = torch.autograd.grad(bound, leaves)
        worst = max(worst, *[float(g.abs()) for g in found])
    return worst


def test_zero_for_every_draw_at_the_posterior() -> None:
    assert per_draw(am.DoublyReparameterized) < 1e-13
    assert per_draw(am.Pathwise) > 0.1
    assert per_draw(DetachedParameters) > 0.1


def test_copy_by_copy_it_is_the_same() -> None:
    """Beside an enumerated site."""

    def model() -> None:
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Bernoulli(torch.full((2,), 0.4)))
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=X)

    def guide() -> None:
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.Bernoulli(logits=weight("l", 0.3) * X))
            pyro.sample("z", dist.Normal(weight("a", 0.4) * X + c, weight("s", 0.9)))

    def found(vectorize: bool) -> list[Tensor]:
        pyro.clear_param_store()
        estimators = {"c": "enumerate", "z": "doubly_reparameterized"}
        loss = am.VariationalLoss(estimators=estimators, vectorize=vectorize)
        loss.warm_up(model, guide, ())
        noise = torch.tensor([0.3, -0.8])
        source = Hermite(["z"], nodes=2)
        source.noise["z"] = noise
        bound = loss.estimate(model, guide, (), {}, noise=source).loss
        store = pyro.get_param_store()
        return list(torch.autograd.grad(bound, [store[n].unconstrained() for n in "wlas"]))

    for one, other in zip(found(True), found(False), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
