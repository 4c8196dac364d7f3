"""Bounds of several weights: value and gradients against the sum over all tuples of particles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimators.base import Estimator
from amortized.objectives.base import Objective
from amortized.surrogate import bound as module
from tests.laws.structures import DATA, weight
from tests.reference import FixedNoise, estimate_law
from tests.surrogate.pieces import START, guide, model, normals_by_hand

pytestmark = pytest.mark.float64

Make = Callable[[], Estimator]


def leaves() -> list[Tensor]:
    store = pyro.get_param_store()
    return [store[name].unconstrained() for name in sorted(START)]


def exact(objective: Objective, size: int) -> list[Tensor]:
    """The bound and its gradients: data are independent, so a sum over the tuples of each."""
    parameters = {n: torch.tensor(v, requires_grad=True) for n, v in START.items()}
    p, total = parameters, torch.zeros(())
    states = list(product([0.0, 1.0], repeat=2))
    for x in DATA[:size]:
        log_q, log_w = [], []
        for z, y in states:
            q = dist.Bernoulli(logits=p["a"] * x).log_prob(torch.tensor(z))
            q = q + dist.Bernoulli(logits=p["e"] * z + p["f"]).log_prob(torch.tensor(y))
            joint = dist.Bernoulli(logits=p["c"]).log_prob(torch.tensor(y))
            joint = joint + dist.Bernoulli(logits=p["b"] * y).log_prob(torch.tensor(z))
            joint = joint + dist.Normal(z * p["w"] + y * (1 - z), 1.0).log_prob(x)
            log_q.append(q)
            log_w.append(joint - q)
        for tuple_ in product(range(4), repeat=objective.num_particles):
            mass = torch.stack([log_q[s] for s in tuple_]).sum().exp()
            total = total + mass * objective.bound(torch.stack([log_w[s] for s in tuple_]))
    gradients = torch.autograd.grad(total, [parameters[name] for name in sorted(START)])
    return [total.detach(), *gradients]


def mean(objective: Objective, estimators: dict[str, Estimator], size: int) -> list[Tensor]:
    """The same of the estimate, over its own randomness."""
    loss = am.VariationalLoss(objective, estimators)
    loss.warm_up(model, guide, (size,))
    loss.eval()

    def run(tree: object) -> list[Tensor]:
        value = -loss.estimate(model, guide, (size,), {}, noise=tree).loss  # type: ignore[arg-type]
        found = torch.autograd.grad(value, leaves(), allow_unused=True, materialize_grads=True)
        return [value, *found]

    return estimate_law(run, noise=FixedNoise(), limit=10**6).mean


def worst(objective: Objective, estimators: dict[str, Estimator], size: int = 1) -> float:
    pairs = zip(mean(objective, estimators, size), exact(objective, size), strict=True)
    return max(float((found - truth).abs().max()) for found, truth in pairs)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "IWAE": lambda: am.IWAE(2),
    "Renyi": lambda: am.Renyi(0.5, 2),
    "Renyi below zero": lambda: am.Renyi(-1.0, 2),
    "one particle": lambda: am.IWAE(1),
}
MAKES: dict[str, Make] = {
    "plain": am.ScoreFunction,
    "over particles": lambda: am.ScoreFunction(am.LeaveOneOut()),
    "two samples": lambda: am.ScoreFunction(am.LeaveOneOut(), num_samples=2),
    "enumerate": am.Enumerate,
    "disarm": am.DisARM,
}


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("estimator", ["plain", "over particles", "enumerate"])
def test_one_recipe_for_both_sites(objective: str, estimator: str) -> None:
    bound = OBJECTIVES[objective]()
    if estimator == "over particles" and bound.num_particles == 1:
        estimator = "two samples"
    estimators = {name: MAKES[estimator]() for name in "zy"}
    assert worst(bound, estimators) < 1e-10


CHEAP = [p for p in product(MAKES, MAKES) if len({*p} & {"two samples", "disarm"}) < 2]
CHEAP = [p for p in CHEAP if p[0] != p[1] or p[0] not in ("two samples", "disarm")]
PAIRS = [pytest.param(*p, marks=[pytest.mark.long] * ("disarm" in p)) for p in CHEAP]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_ordered_pair(first: str, second: str) -> None:
    assert worst(am.IWAE(2), {"z": MAKES[first](), "y": MAKES[second]()}) < 1e-10


def test_data_points_do_not_share_weights() -> None:
    assert worst(am.IWAE(2), {"z": am.ScoreFunction(), "y": am.ScoreFunction()}, size=2) < 1e-10


def test_one_particle_is_the_elbo_draw_by_draw() -> None:
    def gradients(objective: Objective) -> list[Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss = am.VariationalLoss(objective, {"*": am.ScoreFunction()})
        value = loss.differentiable_loss(model, guide)
        # the model's: in the guide, the ELBO charges a site what is downstream only
        _, b, c, _, _, w = leaves()
        return [value.detach(), *torch.autograd.grad(value, [b, c, w])]

    found = zip(gradients(am.IWAE(1)), gradients(am.ELBO()), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in found)


def test_a_pathwise_latent_is_weighted_by_autograd() -> None:
    """Against the bound written out, on the same draws."""
    objective = am.IWAE(4)

    def written(log_p: Tensor, log_q: Tensor) -> Tensor:
        return -objective.bound(log_p - log_q).sum()

    for one, other in normals_by_hand(objective, written, constant=False):
        assert torch.allclose(one, other, rtol=1e-11)


@pytest.mark.parametrize("inside", [False, True])
def test_subsampling_stands_outside_the_logarithm(inside: bool) -> None:
    """A minibatch of 2 of 10, whether the program says so or the size of the data does."""

    def scaled(program: Callable[..., None]) -> Callable[[], None]:
        return lambda: poutine.scale(program, 5.0)(2) if inside else program(2)

    pair = scaled(model), scaled(guide)
    data = am.DataPlate(size=None if inside else 10)
    loss = am.VariationalLoss(am.IWAE(3), {"*": am.ScoreFunction()})
    plain = am.VariationalLoss(am.IWAE(3), {"*": am.ScoreFunction()})
    values = []
    for one, (p, q, args), size in ((loss, (*pair, ()), data), (plain, (model, guide, (2,)), None)):
        one.warm_up(p, q, args)
        pyro.set_rng_seed(2)
        estimate = one.estimate(p, q, args, {}, data=size)
        values.append([estimate.loss, *torch.autograd.grad(estimate.loss, leaves())])
    for big, small in zip(*values, strict=True):
        assert torch.allclose(big, 5 * small, rtol=1e-12)


def test_a_global_latent_is_one_bound_of_the_whole_without_minibatches() -> None:
    def p(size: int = 2) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample_size=2):
            pyro.sample("x", dist.Normal(g * weight("w", 0.7), 1.0), obs=DATA)

    def q(size: int = 2) -> None:
        pyro.sample("g", dist.Normal(weight("a", 0.4), 0.8))

    loss = am.VariationalLoss(am.IWAE(4))
    assert loss.estimate(p, q, (), {}).loss.shape == ()
    with pytest.raises(am.ProgramError, match=r"site 'x'.*plate 'data' \(2 of 10\).*biased"):
        am.VariationalLoss(am.IWAE(4)).estimate(p, q, (10,), {})


REFUSED: dict[str, Make] = {
    "closed form": lambda: am.Relaxed(),
    "differentiates": am.REBAR,
}


@pytest.mark.parametrize("why", sorted(REFUSED))
def test_estimators_that_need_a_sum_are_refused(why: str) -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.4))

    loss = am.VariationalLoss(am.IWAE(2), {"z": REFUSED[why]()})
    with pytest.raises(am.EstimatorError, match=rf"site 'z'.*IWAE.*{why}.*am\.ELBO"):
        loss.estimate(program, program, (), {})


def test_a_mutant_without_the_direct_term_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charging the whole bound, A = g, is right for no bound but the ELBO."""
    right = module.replaced

    def whole(objective: Objective, base: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        bound, slope = right(objective, base, rows)
        return bound, torch.zeros_like(slope)

    monkeypatch.setattr(module, "replaced", whole)
    assert worst(am.IWAE(2), {"z": am.ScoreFunction(), "y": am.ScoreFunction()}) > 1e-3


def weighed_programs(case: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """One bit whose own log q does not count exactly once in its weight."""
    mask = torch.tensor([False]) if case == "masked" else None
    ours, theirs = (2.0, 0.5) if case == "scaled" else (1.0, 1.0)

    def p() -> None:
        with pyro.plate("data", 1):
            with poutine.mask(mask=True if mask is None else mask), poutine.scale(scale=ours):
                z = pyro.sample("z", dist.Bernoulli(logits=weight("b", -0.3).expand(1)))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=DATA[:1])

    def q() -> None:
        with pyro.plate("data", 1), poutine.scale(scale=theirs):
            with poutine.mask(mask=True if mask is None else mask):
                pyro.sample("z", dist.Bernoulli(logits=weight("a", 0.4).expand(1)))

    return p, q


@pytest.mark.parametrize("case", ["plain", "warm-up", "masked", "scaled"])
@pytest.mark.parametrize("estimator", [*MAKES, "unordered set", "measure valued"])
def test_log_q_that_does_not_count_once(case: str, estimator: str) -> None:
    """Its direct gradient is left out as often as it is in the weight."""
    p, q = weighed_programs(case)
    beta = 0.3 if case == "warm-up" else 1.0
    makes = {**MAKES, "unordered set": am.UnorderedSet, "measure valued": am.MeasureValued}
    loss = am.VariationalLoss(am.IWAE(2), {"z": makes[estimator]()})
    loss.warm_up(p, q, ())
    b, a = (pyro.get_param_store()[name].unconstrained() for name in "ba")

    def run(tree: Any) -> list[Tensor]:
        value = -loss.estimate(p, q, (), {}, noise=tree, kl_weight=beta).loss
        return [value, *torch.autograd.grad(value, [b, a], materialize_grads=True)]

    found = estimate_law(run, noise=FixedNoise(), limit=10**6).mean
    seen, s_p, s_q = case != "masked", *((2.0, 0.5) if case == "scaled" else (1.0, 1.0))
    total = torch.zeros(())
    bits = torch.tensor([0.0, 1.0])
    log_q = dist.Bernoulli(logits=a).log_prob(bits)
    terms = s_p * dist.Bernoulli(logits=b).log_prob(bits) - s_q * log_q
    log_w = dist.Normal(2.0 * bits, 1.0).log_prob(DATA[0]) + seen * beta * terms
    for one, two in product(range(2), repeat=2):
        mass = (log_q[one] + log_q[two]).exp()
        total = total + mass * am.IWAE(2).bound(torch.stack([log_w[one], log_w[two]]))
    truth = [total, *torch.autograd.grad(total, [b, a])]
    for mine, exact_ in zip(found, truth, strict=True):
        assert torch.allclose(mine, exact_, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("estimator", [am.Enumerate, am.SumAndSample, am.MeasureValued])
def test_elements_that_one_weight_adds_up_are_refused(estimator: Make) -> None:
    def program() -> None:
        pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Bernoulli(0.4))

    loss = am.VariationalLoss(am.IWAE(2), {"z": estimator()})
    with pytest.raises(am.EstimatorError, match=r"site 'z'.*plate 'd'.*IWAE.*am\.DisARM"):
        loss.estimate(program, program, (), {})


class Nodes:
    """Standard normal nodes for every particle and datum: a product rule over a plate."""

    def __init__(self, sites: int, particles: int, count: int = 24) -> None:
        off = torch.tensor([k**0.5 for k in range(1, count)]).diag(1)
        values, vectors = torch.linalg.eigh(off + off.T)
        dims = sites * particles
        grid = torch.cartesian_prod(*[values] * dims).reshape(-1, dims)
        mass = torch.cartesian_prod(*[vectors[0] ** 2] * dims).reshape(-1, dims)
        self.weights, self.size = mass.prod(-1), len(grid)
        self.noise = grid.T.reshape(sites, particles, self.size)
        self.used: list[str] = []

    def rsample(self, fn: Any, sample_shape: tuple[int, ...] = (), *, site: str) -> Tensor:
        if site not in self.used:
            self.used.append(site)
        return fn.mean + fn.stddev * self.noise[self.used.index(site)]


def hierarchy(nodes: Nodes, far: float, layers: int) -> tuple[Any, Any]:
    """One or two normal layers; at ``far=0`` the guide is the posterior."""
    x, size = 1.3, nodes.size

    def p() -> None:
        with pyro.plate("grid", size), poutine.scale(scale=nodes.weights):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))
            y = pyro.sample("y", dist.Normal(z, 1.0)) if layers == 2 else z
            mean = y * (1.0 + far * weight("w", 0.7))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.full((size,), x))

    def q() -> None:
        a, s = (1 / 3, (2 / 3) ** 0.5) if layers == 2 else (0.5, 0.5**0.5)
        a, s = weight("a", a + far), weight("s", s * (1 - far / 2))
        b, c, t = weight("b", 0.5 - far), weight("c", 0.5), weight("t", 0.5**0.5)
        with pyro.plate("grid", size), poutine.scale(scale=nodes.weights):
            z = pyro.sample("z", dist.Normal((a * x).expand(size), s))
            if layers == 2:
                pyro.sample("y", dist.Normal(b * z + c * x, t))

    return p, q


def integrated(
    make: Make, objective: Objective, far: float, layers: int, count: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of the bound, integrated; and the largest one of a node, in the guide."""
    pyro.clear_param_store()
    nodes = Nodes(layers, objective.num_particles, count)
    p, q = hierarchy(nodes, far, layers)
    loss = am.VariationalLoss(objective, {"*": make()})
    loss.warm_up(p, q, ())
    store = pyro.get_param_store()
    parameters = {name: store[name].unconstrained() for name in store}
    bound = -loss.estimate(p, q, (), {}, noise=nodes).loss  # type: ignore[arg-type]
    found = torch.autograd.grad(bound, list(parameters.values()), allow_unused=True)
    zero = torch.zeros(())
    return {n: zero if g is None else g for n, g in zip(parameters, found, strict=True)}, bound


@pytest.mark.parametrize(
    ("objective", "layers", "count", "tolerance"),
    [
        (am.IWAE(2), 1, 60, 1e-8),
        (am.Renyi(0.5, 2), 1, 60, 1e-8),
        (am.Renyi(1.0, 2), 1, 30, 1e-10),
        (am.Renyi(0.5, 2), 2, 22, 1e-6),
    ],
)
def test_doubly_reparameterized_is_unbiased(
    objective: Objective, layers: int, count: int, tolerance: float
) -> None:
    plain, value = integrated(am.Pathwise, objective, 0.15, layers, count)
    doubly, same = integrated(am.DoublyReparameterized, objective, 0.15, layers, count)
    assert torch.allclose(value, same, rtol=1e-12)
    assert max(float(g.abs()) for g in plain.values()) > 0.05
    for name, gradient in plain.items():
        assert float((doubly[name] - gradient).abs()) < tolerance, name


@pytest.mark.parametrize("layers", [1, 2])
def test_doubly_reparameterized_is_zero_at_the_posterior(layers: int) -> None:
    """For every draw of one pair of particles."""

    def largest(make: Make) -> float:
        pyro.clear_param_store()
        nodes = Nodes(layers, 2, 1)
        p, q = hierarchy(nodes, 0.0, layers)
        loss = am.VariationalLoss(am.IWAE(2), {"*": make()})
        pyro.set_rng_seed(1)
        loss.warm_up(p, q, ())
        store = pyro.get_param_store()
        guides = [store[name].unconstrained() for name in store if name != "w"]
        bound = loss.differentiable_loss(p, q)
        found = torch.autograd.grad(bound, guides, materialize_grads=True, allow_unused=True)
        return max(float(gradient.abs()) for gradient in found)

    assert largest(am.DoublyReparameterized) < 1e-13
    assert largest(am.Pathwise) > 1e-2
