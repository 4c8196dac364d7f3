"""Spike (a): REBAR on a bit with a dependent later site; the folded cost is handed over attached.

Guide: g ~ Bern(gamma), enumerated; b ~ Bern(phi), REBAR; w ~ Bern(alpha + beta b + delta g), any.
Axes, left to right: copies of w, of b, of g, the noise grid of b, the noise grid of w.
The noise is integrated: Gauss-Legendre nodes inside the cells on which the hard bits are constant.
"""

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

X = 0.7
NAMES = ("gamma", "phi", "alpha", "beta", "delta", "theta", "theta_g")


def parameters() -> dict[str, Tensor]:
    start = {"gamma": 0.3, "phi": -0.6, "alpha": -0.4, "beta": 1.7, "delta": -0.8}
    leaves = {name: torch.tensor(value, dtype=torch.float64) for name, value in start.items()}
    leaves["theta"] = torch.tensor([0.9, -1.1, 2.0], dtype=torch.float64)
    leaves["theta_g"] = torch.tensor(1.4, dtype=torch.float64)
    return {name: leaves[name].requires_grad_() for name in NAMES}


def log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    return -value * F.softplus(-logits) - (1 - value) * F.softplus(logits)


def log_joint(p: dict[str, Tensor], g: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Linear in no bit: the slope at a relaxed value is not a difference of hard values."""
    half = torch.zeros((), dtype=torch.float64)
    mean = p["theta"][0] * b + p["theta"][1] * w + (p["theta"][2] + p["theta_g"] * g) * b * b * w
    return log_bernoulli(half, b) + log_bernoulli(0.5 - b, w) - 0.5 * (X - mean) ** 2


def later_logits(p: dict[str, Tensor], g: Tensor, b: Tensor) -> Tensor:
    return p["alpha"] + p["beta"] * b + p["delta"] * g


# the planned protocol, in miniature


class Noise(Protocol):
    def uniform(self, prob: Tensor) -> Tensor: ...


class Cells:
    """2 * nodes points for each uniform asked for: the two cells of the bit, a rule in each."""

    def __init__(self, calls: int, nodes: int, trailing: int) -> None:
        points, weights = np.polynomial.legendre.leggauss(nodes)
        self._points = torch.from_numpy((points + 1) / 2)
        self._weights = torch.from_numpy(weights / 2)
        grid = list(itertools.product(range(2 * nodes), repeat=calls))
        self._codes = torch.tensor(grid).T.reshape(calls, len(grid), *[1] * trailing)
        self._calls = 0
        self.weight = torch.ones((), dtype=torch.float64)

    def uniform(self, prob: Tensor) -> Tensor:
        code = self._codes[self._calls]
        self._calls += 1
        upper, node = code % 2, code // 2
        edge = 1 - prob.detach()
        width = torch.where(upper == 1, 1 - edge, edge)
        self.weight = self.weight * width * self._weights[node]
        return torch.where(upper == 1, edge, 0.0) + width * self._points[node]


class Random:
    def __init__(self, seed: int, draws: int) -> None:
        self._generator, self._draws = torch.Generator().manual_seed(seed), draws
        self.weight = torch.tensor(1.0 / draws, dtype=torch.float64)

    def uniform(self, prob: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(prob.shape, (self._draws, 1))
        return torch.rand(shape, generator=self._generator, dtype=torch.float64)


@dataclass(frozen=True)
class Draw:
    """`value` [C, ...] is the very tensor that the program sees: slopes are taken in it."""

    value: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)


class Estimator(Protocol):
    calls: int

    def draw(self, logits: Tensor, noise: Noise) -> Draw: ...
    def weights(self, draw: Draw) -> Tensor | None: ...
    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor | None: ...


def zeroed(term: Tensor) -> Tensor:
    return term - term.detach()


class Score:
    calls = 1

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        prob = logits.sigmoid()
        value = (noise.uniform(prob) > 1 - prob).double().unsqueeze(0)
        return Draw(value, {"log_q": log_bernoulli(logits, value)})

    def weights(self, draw: Draw) -> Tensor | None:
        return None

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor | None:
        return (zeroed(draw.memory["log_q"]) * cost.detach()).mean(0)


class LeaveOneOut:
    calls = 2

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        prob = logits.sigmoid()
        value = torch.stack([(noise.uniform(prob) > 1 - prob).double() for _ in range(2)])
        return Draw(value, {"log_q": log_bernoulli(logits, value)})

    def weights(self, draw: Draw) -> Tensor | None:
        return None

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor | None:
        return (zeroed(draw.memory["log_q"]) * (cost - cost.flip(0)).detach()).mean(0)


class Enumerate:
    calls = 0

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        value = torch.arange(2.0, dtype=torch.float64).reshape(2, *[1] * logits.dim())
        return Draw(value, {"weights": log_bernoulli(logits, value).exp()})

    def weights(self, draw: Draw) -> Tensor | None:
        return draw.memory["weights"]

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor | None:
        return None


class Rebar:
    """Copies (hard, relaxed, relaxed given hard), temperature 1. `scale` is eta in the paper."""

    calls = 2

    def __init__(
        self, scale: float = 0.8, through: str = "slope", forget_phi: bool = False
    ) -> None:
        self.scale, self.through, self.forget_phi = scale, through, forget_phi

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        prob = logits.sigmoid()
        u, v = noise.uniform(prob), noise.uniform(prob)
        z = logits + torch.logit(u)
        hard = (z > 0).double()
        phi = logits.detach() if self.forget_phi else logits
        above = F.softplus(phi + v.log()) - torch.log1p(-v)
        below = v.log() - F.softplus(-phi + torch.log1p(-v))
        given = torch.where(hard > 0, above, below)
        value = torch.stack([hard, z.sigmoid(), given.sigmoid()])
        return Draw(value, {"log_q": log_bernoulli(logits, hard)})

    def weights(self, draw: Draw) -> Tensor | None:
        return torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor | None:
        bracket = (cost[0] - self.scale * cost[2]).detach()
        score = zeroed(draw.memory["log_q"]) * bracket
        if self.through == "cost":
            return score + self.scale * zeroed(cost[1] - cost[2])
        (slope,) = torch.autograd.grad(cost[1:].sum(), draw.value, retain_graph=True)
        relaxed = draw.value[1] * slope[1] - draw.value[2] * slope[2]
        return score + self.scale * zeroed(relaxed)


def fold(estimator: Estimator, draw: Draw, cost: Tensor) -> Tensor:
    weights = estimator.weights(draw)
    if weights is None:
        value = cost.mean(0)
    elif weights.dim() == 1:
        value = torch.tensordot(weights, cost, dims=1)
    else:
        value = (weights * cost).sum(0)
    surrogate = estimator.surrogate(draw, cost)
    return value if surrogate is None else value + surrogate


# the assembly, and its mutants


@dataclass(frozen=True)
class Assembly:
    own_at_relaxed: bool = False  # own log q, detached, also at the relaxed copies of b
    expand: bool = True  # b's law is expanded over the open axes (here g's) before b is drawn
    later_surrogates: bool = True  # the cost of b carries the surrogates (or attached weights) of w
    redraw: bool = True  # w is drawn per copy of b


def estimate(
    p: dict[str, Tensor],
    first: Rebar,
    later: Estimator,
    assembly: Assembly,
    noises: tuple[Cells | Random, Cells | Random],
) -> Tensor:
    """Sum over the noise grid of weight * (value + surrogates)."""
    g = torch.arange(2.0, dtype=torch.float64).reshape(2, 1, 1)
    law_b = p["phi"].expand(2 if assembly.expand else 1, 1, 1)
    b = first.draw(law_b, noises[0])
    law_w = later_logits(p, g, b.value)
    w = later.draw(law_w if assembly.redraw else law_w[:1], noises[1])

    own_b = own(law_b, b.value, 3 if assembly.own_at_relaxed else 1)
    own_w = own(law_w, w.value, 1 if isinstance(later, Rebar) else len(w.value))
    cost_w = log_joint(p, g, b.value, w.value) - own_b - own_w

    folded = fold(later, w, cost_w)
    if not assembly.later_surrogates:
        plain = (
            (later.weights(w).detach() * cost_w).sum(0)
            if isinstance(later, Enumerate)
            else cost_w.mean(0)
        )
        folded = folded - zeroed(folded) + zeroed(plain)
    cost_b = (noises[1].weight * folded).sum(-1, keepdim=True)

    cost_g = fold(first, b, cost_b)
    weight_g = log_bernoulli(p["gamma"], g).exp()
    entropy = -log_bernoulli(p["gamma"], g) + log_bernoulli(torch.zeros((), dtype=torch.float64), g)
    return (noises[0].weight * weight_g * (cost_g + entropy)).sum()


def own(logits: Tensor, value: Tensor, copies: int) -> Tensor:
    """The site's log q as its cost sees it: detached, only on copies that are ordinary draws."""
    ordinary = torch.arange(len(value)).reshape(-1, *[1] * (value.dim() - 1)) < copies
    return torch.where(ordinary, log_bernoulli(logits, value).detach(), 0.0)


def exact_gradients() -> dict[str, Tensor]:
    p = parameters()
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    g, b, w = bits.unbind(-1)
    log_q = (
        log_bernoulli(p["gamma"], g)
        + log_bernoulli(p["phi"], b)
        + log_bernoulli(later_logits(p, g, b), w)
    )
    prior = log_bernoulli(torch.zeros((), dtype=torch.float64), g)
    (log_q.exp() * (log_joint(p, g, b, w) + prior - log_q)).sum().backward()
    return gradients(p)


def gradients(p: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, leaf in p.items():
        assert leaf.grad is not None, name
        found[name] = leaf.grad
    return found


def expected(first: Rebar, later: Estimator, assembly: Assembly = Assembly()) -> dict[str, Tensor]:
    p = parameters()
    outer, inner = (7, 7) if isinstance(later, Rebar) else (12, 1)
    noises = (Cells(first.calls, outer, trailing=1), Cells(later.calls, inner, trailing=0))
    estimate(p, first, later, assembly, noises).backward()
    return gradients(p)


def worst(found: dict[str, Tensor]) -> float:
    exact = exact_gradients()
    return max(float((found[name] - exact[name]).abs().max()) for name in NAMES)


def bias(found: dict[str, Tensor]) -> float:
    return float(found["phi"] - exact_gradients()["phi"])


LATER: list[Estimator] = [Score(), LeaveOneOut(), Enumerate(), Rebar(0.6)]


@pytest.mark.parametrize("later", LATER, ids=lambda later: type(later).__name__)
@pytest.mark.parametrize("through", ["slope", "cost"])
def test_attached_folded_cost_is_exact(later: Estimator, through: str) -> None:
    assert worst(expected(Rebar(through=through), later)) < 1e-9


@pytest.mark.parametrize("later", LATER[:3], ids=lambda later: type(later).__name__)
def test_dropping_the_law_of_the_later_site_is_biased(later: Estimator) -> None:
    assert abs(bias(expected(Rebar(), later, Assembly(later_surrogates=False)))) > 0.01


@pytest.mark.parametrize("later", LATER[:2], ids=lambda later: type(later).__name__)
def test_reusing_the_later_draw_is_biased(later: Estimator) -> None:
    assert abs(bias(expected(Rebar(), later, Assembly(redraw=False)))) > 0.01


def test_forgetting_phi_in_the_conditional_noise_is_biased() -> None:
    assert abs(bias(expected(Rebar(forget_phi=True), Score()))) > 1e-3


def test_a_detached_own_term_at_relaxed_copies_is_biased() -> None:
    assert abs(bias(expected(Rebar(), Score(), Assembly(own_at_relaxed=True)))) > 0.01


def test_a_slope_summed_over_an_earlier_axis_is_biased() -> None:
    """b's law lacks g's axis, its cost has it: each copy of g needs its own slope."""
    assert worst(expected(Rebar(), Score(), Assembly(expand=False))) > 0.01
    assert worst(expected(Rebar(through="cost"), Score(), Assembly(expand=False))) < 1e-9


def spread(through: str, draws: int = 200) -> dict[str, float]:
    p = parameters()
    seen: dict[str, list[float]] = {name: [] for name in NAMES}
    for seed in range(draws):
        noises = (Random(2 * seed, 1), Random(2 * seed + 1, 1))
        value = estimate(p, Rebar(0.8, through), Score(), Assembly(), noises)
        grads = torch.autograd.grad(value, list(p.values()))
        for name, grad in zip(NAMES, grads, strict=True):
            seen[name].append(float(grad.sum()))
    return {name: float(np.var(values)) for name, values in seen.items()}


def test_the_slope_keeps_noise_out_of_the_models_parameters() -> None:
    slope, cost = spread("slope"), spread("cost")
    assert slope["phi"] == pytest.approx(cost["phi"], rel=1e-9)
    assert slope["theta"] < cost["theta"]
    assert slope["alpha"] < cost["alpha"]


def report() -> None:
    print("exact", {name: grad.tolist() for name, grad in exact_gradients().items()})
    dropped, reused = Assembly(later_surrogates=False), Assembly(redraw=False)
    for rule in LATER:
        slope, cost = (worst(expected(Rebar(through=t), rule)) for t in ("slope", "cost"))
        print(type(rule).__name__, f"worst error: slope {slope:.1e}, cost {cost:.1e}")
    for rule in LATER[:3]:
        print(
            type(rule).__name__, f"law dropped: bias {bias(expected(Rebar(), rule, dropped)):+.4f}"
        )
    for rule in LATER[:2]:
        print(
            type(rule).__name__, f"draw re-used: bias {bias(expected(Rebar(), rule, reused)):+.4f}"
        )
    print(f"conditional detached: bias {bias(expected(Rebar(forget_phi=True), Score())):+.4f}")
    own_kept, summed = Assembly(own_at_relaxed=True), Assembly(expand=False)
    print(f"own log q at relaxed copies: bias {bias(expected(Rebar(), Score(), own_kept)):+.4f}")
    print(f"slope summed over g: worst error {worst(expected(Rebar(), Score(), summed)):.4f}")
    print("variances, slope", spread("slope"), "cost", spread("cost"))


if __name__ == "__main__":
    report()
