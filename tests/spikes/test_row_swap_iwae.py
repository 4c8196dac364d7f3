"""Spike (b): estimators under IWAE and Renyi bounds, K = 2 particles, by row swap.

A site's cost in particle k is A_k = g - g'_k, row k of the log-weights taken at the site's copy.
Axes, left to right: copies of z2, copies of z1, particles, grid of every outcome of the noise.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

K = 2
DTYPE = torch.float64
NAMES = ("phi", "alpha", "beta", "theta")
Bound = Callable[[Tensor], Tensor]


def iwae(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def renyi(log_w: Tensor) -> Tensor:
    return ((0.5 * log_w).logsumexp(0) - math.log(len(log_w))) / 0.5


def elbo(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


BOUNDS: dict[str, Bound] = {"iwae": iwae, "renyi": renyi, "elbo": elbo}


def parameters() -> dict[str, Tensor]:
    leaves = {"phi": torch.tensor(-0.5, dtype=DTYPE), "alpha": torch.tensor(0.6, dtype=DTYPE)}
    leaves["beta"] = torch.tensor(-1.3, dtype=DTYPE)
    leaves["theta"] = torch.tensor([1.2, -0.9, 1.6], dtype=DTYPE)
    return {name: leaves[name].requires_grad_() for name in NAMES}


def log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    return -value * F.softplus(-logits) - (1 - value) * F.softplus(logits)


def log_joint(p: dict[str, Tensor], z1: Tensor, z2: Tensor) -> Tensor:
    mean = p["theta"][0] * z1 + p["theta"][1] * z2 + p["theta"][2] * z1 * z2
    half = torch.zeros((), dtype=DTYPE)
    return log_bernoulli(half, z1) + log_bernoulli(0.7 - z1, z2) - 0.5 * (1.3 - mean) ** 2


def charge(bound: Bound, log_w: Tensor) -> Tensor:
    """A_k = g - g'_k [K, ...], attached if `log_w` is: a slope in it needs g''."""
    live = log_w if log_w.requires_grad else log_w.detach().requires_grad_()
    g = bound(live)
    (slope,) = torch.autograd.grad(g.sum(), live, create_graph=log_w.requires_grad)
    return g - slope if log_w.requires_grad else (g - slope).detach()


def swapped(bound: Bound, base: Tensor, rows: Tensor) -> Tensor:
    """cost[c, k] = A_k(base with row k := rows[c, k]).  base [K, ...], rows [C, K, ...]."""
    particles = len(base)
    own = torch.eye(particles, dtype=torch.bool).reshape(
        particles, 1, particles, *[1] * (base.dim() - 1)
    )
    table = torch.where(own, rows.unsqueeze(0), base.unsqueeze(1).unsqueeze(2))  # [row, C, k, ...]
    charges = charge(bound, table)
    return charges.diagonal(dim1=0, dim2=2).movedim(-1, 1)


def left_out(bound: Bound, base: Tensor) -> Tensor:
    """A_k with row k := the mean of the others: leave-one-out over particles (IWAE: VIMCO)."""
    mean = (base.sum(0, keepdim=True) - base) / (len(base) - 1)
    return swapped(bound, base, mean.unsqueeze(0))[0]


class Cells:
    """Each scalar uniform runs over the cells on which the bits of (u, 1 - u) are constant."""

    def __init__(self, scalars: int, cells: int) -> None:
        codes = list(itertools.product(range(cells), repeat=scalars))
        self._codes, self._cells, self._used = torch.tensor(codes).T, cells, 0
        self.weight = torch.ones(len(codes), dtype=DTYPE)

    def uniform(self, prob: Tensor) -> Tensor:
        prob = prob.detach().expand(*prob.shape[:-1], self._codes.shape[1])
        scalars = prob[..., 0].numel()
        code = self._codes[self._used : self._used + scalars].reshape(prob.shape)
        self._used += scalars
        zero, one = torch.zeros_like(prob), torch.ones_like(prob)
        inner = (
            [prob]
            if self._cells == 2
            else [torch.minimum(prob, 1 - prob), torch.maximum(prob, 1 - prob)]
        )
        edges = torch.stack([zero, *inner, one])
        low, high = edges.gather(0, code[None])[0], edges.gather(0, code[None] + 1)[0]
        self.weight = self.weight * (high - low).reshape(-1, prob.shape[-1]).prod(0)
        return (low + high) / 2


@dataclass(frozen=True)
class Draw:
    value: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Cost:
    copies: Tensor  # [C, K, ...]
    peers: Tensor | None = None  # [K, ...]: the cost that does not know the particle's own draw


def zeroed(term: Tensor) -> Tensor:
    return term - term.detach()


class Score:
    copies, cells = 1, 2

    def draw(self, logits: Tensor, noise: Cells) -> Draw:
        uniforms = [noise.uniform(logits.sigmoid()) for _ in range(self.copies)]
        value = torch.stack([(u < logits.detach().sigmoid()).to(DTYPE) for u in uniforms])
        return Draw(value, logits)

    def baseline(self, cost: Cost) -> Tensor:
        return torch.zeros((), dtype=DTYPE)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        score = zeroed(log_bernoulli(draw.logits, draw.value))
        return (score * (cost.copies - self.baseline(cost)).detach()).mean(0)


class OverParticles(Score):
    def baseline(self, cost: Cost) -> Tensor:
        assert cost.peers is not None
        return cost.peers


class OwnSamples(Score):
    copies = 2

    def baseline(self, cost: Cost) -> Tensor:
        return cost.copies.flip(0)


class DisARM(Score):
    copies, cells = 2, 3

    def draw(self, logits: Tensor, noise: Cells) -> Draw:
        u, prob = noise.uniform(logits.sigmoid()), logits.detach().sigmoid()
        return Draw(torch.stack([u < prob, 1 - u < prob]).to(DTYPE), logits)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        first, second = draw.value
        sign = torch.where(second > 0, -1.0, 1.0) * (first != second)
        size = draw.logits.detach().abs().sigmoid()
        return (
            zeroed(draw.logits) * (0.5 * (cost.copies[0] - cost.copies[1]) * sign * size).detach()
        )


@dataclass(frozen=True)
class Rules:
    direct: str = "swapped"  # g' of A = g - g': of the swapped rows | of the base rows | left out
    joint: bool = False  # swap all rows at once: C bounds rather than C * K
    own_attached: bool = False  # the sites' own log q, attached inside the bound: counted twice
    stale_later: bool = False  # z2 drawn for z1's base copy serves its other copies too
    peers_know: bool = False  # the baseline over particles averages over the particle itself too


def site_cost(bound: Bound, base: Tensor, rows: Tensor, rules: Rules) -> Cost:
    peers = left_out(bound, base)
    if rules.peers_know:
        peers = swapped(bound, base, base.mean(0, keepdim=True).expand_as(base).unsqueeze(0))[0]
    if rules.joint:
        return Cost(torch.stack([charge(bound, row) for row in rows]), peers)
    cost = swapped(bound, base, rows)
    if rules.direct != "swapped":
        (slope,) = torch.autograd.grad(bound(live := base.clone().requires_grad_()).sum(), live)
        cost = swapped_bound(bound, base, rows) - (slope if rules.direct == "base" else 0.0)
    return Cost(cost, peers)


def swapped_bound(bound: Bound, base: Tensor, rows: Tensor) -> Tensor:
    own = [(torch.arange(K) == k).unsqueeze(-1) for k in range(K)]
    swaps = [bound(torch.where(own[k], row, base)) for row in rows for k in range(K)]
    return torch.stack(swaps).reshape(len(rows), K, -1)


def scalars(first: Score, second: Score | None) -> int:
    own = [1 if isinstance(site, DisARM) else site.copies for site in (first, second or first)]
    return K * (own[0] + (0 if second is None else first.copies * own[1]))


def estimate(
    p: dict[str, Tensor], bound: Bound, rules: Rules, first: Score, second: Score | None
) -> Tensor:
    cells = max(first.cells, 2 if second is None else second.cells)
    noise = Cells(scalars(first, second), cells)
    z1 = first.draw(p["phi"].reshape(1, -1).expand(K, -1), noise)
    parent = z1.value[:1].expand_as(z1.value) if rules.stale_later else z1.value
    logits = p["alpha"] + p["beta"] * parent
    no_site = Draw(torch.zeros(1, 1, 1, 1, dtype=DTYPE), logits)
    z2 = no_site if second is None else second.draw(logits, noise)

    own1 = log_bernoulli(z1.logits, z1.value)
    own2 = (
        log_bernoulli(z2.logits, z2.value) if second is not None else torch.zeros((), dtype=DTYPE)
    )
    own = own1 + own2 if rules.own_attached else (own1 + own2).detach()
    log_w = log_joint(p, z1.value, z2.value) - own  # [C2, C1, K, grid]

    base = log_w[0, 0]
    still = base.detach()
    terms = first.surrogate(z1, site_cost(bound, still, log_w[0].detach(), rules)).sum(0)
    if second is not None:
        on_base = Draw(z2.value[:, 0], z2.logits[0])
        terms = terms + second.surrogate(
            on_base, site_cost(bound, still, log_w[:, 0].detach(), rules)
        ).sum(0)
    return (noise.weight * (bound(base) + terms)).sum()


def gradient(value: Tensor, p: dict[str, Tensor]) -> Tensor:
    grads = torch.autograd.grad(value, list(p.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([grad.reshape(-1) for grad in grads])


def exact(bound: Bound, sites: int) -> Tensor:
    p = parameters()
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K * sites)), dtype=DTYPE).T
    z1 = z[:K]
    log_q = log_bernoulli(p["phi"], z1)
    z2 = torch.zeros_like(z1)
    if sites == 2:
        z2 = z[K:]
        log_q = log_q + log_bernoulli(p["alpha"] + p["beta"] * z1, z2)
    log_w = log_joint(p, z1, z2) - log_q
    return gradient((log_q.sum(0).exp() * bound(log_w)).sum(), p)


def error(bound: Bound, rules: Rules, first: Score, second: Score | None) -> float:
    p = parameters()
    found = gradient(estimate(p, bound, rules, first, second), p)
    return float((found - exact(bound, 1 if second is None else 2)).abs().max())


def variance(bound: Bound, rules: Rules, first: Score) -> float:
    """Exact variance of the derivative in phi, one site: a phi for each outcome of the noise."""
    points = first.cells ** scalars(first, None)
    p = parameters()
    p["phi"] = p["phi"].detach().expand(points).clone().requires_grad_()
    (weighted,) = torch.autograd.grad(estimate(p, bound, rules, first, None), p["phi"])
    noise = Cells(scalars(first, None), first.cells)
    first.draw(p["phi"].detach().expand(K, points), noise)
    return float((weighted.square() / noise.weight).sum() - weighted.sum().square())


def rebar_slope(bound: Bound, later_own: bool, later_law: bool, nodes: int = 24) -> float:
    """Derivative in phi, REBAR on z1 and score on z2: quadrature over (u, v), the rest summed."""
    p = parameters()
    points, widths = np.polynomial.legendre.leggauss(nodes)
    unit, width = torch.from_numpy((points + 1) / 2), torch.from_numpy(widths / 2)
    edge = 1 - p["phi"].detach().sigmoid()
    u = torch.cat([edge * unit, edge + (1 - edge) * unit]).unsqueeze(-1)
    weight = torch.cat([edge * width, (1 - edge) * width]).unsqueeze(-1) * width
    value = relaxed_bit(p["phi"], u, unit)

    outcomes = torch.tensor([0.0, 1.0], dtype=DTYPE).reshape(2, 1, 1, 1)
    log_q2 = log_bernoulli(p["alpha"] + p["beta"] * value, outcomes)  # [z2, 3, u, v]
    own1 = log_bernoulli(p["phi"].detach(), value[0])
    own1 = torch.stack([own1, torch.zeros_like(own1), torch.zeros_like(own1)])
    log_w = log_joint(p, value, outcomes) - own1 - (log_q2 if later_own else log_q2.detach())

    other = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=DTYPE).T
    log_q = log_bernoulli(p["phi"], other[0]) + log_bernoulli(
        p["alpha"] + p["beta"] * other[0], other[1]
    )
    rest = (log_joint(p, other[0], other[1]) - log_q).detach().reshape(4, 1, 1, 1, 1)
    table = torch.stack([log_w.unsqueeze(0).expand(4, *log_w.shape), rest.expand(4, *log_w.shape)])
    cost = charge(bound, table)[0]
    if later_law:
        cost = cost + zeroed(log_q2) * cost.detach()
    folded = (log_q.exp().detach().reshape(4, 1, 1, 1, 1) * log_q2.exp().detach() * cost).sum(
        (0, 1)
    )
    return K * rebar(p["phi"], value, folded, weight)


def relaxed_bit(phi: Tensor, u: Tensor, v: Tensor) -> Tensor:
    z = phi + torch.logit(u)
    above = F.softplus(phi + v.log()) - torch.log1p(-v)
    below = v.log() - F.softplus(-phi + torch.log1p(-v))
    given = torch.where(z > 0, above, below)
    hard, relaxed = (z > 0).to(DTYPE), z.sigmoid()
    return torch.stack(torch.broadcast_tensors(hard, relaxed, given.sigmoid()))


def rebar(phi: Tensor, value: Tensor, cost: Tensor, weight: Tensor) -> float:
    (slope,) = torch.autograd.grad(cost[1:].sum(), value, retain_graph=True)
    score = log_bernoulli(phi, value[0].detach()) * (cost[0] - cost[2]).detach()
    term = (weight * (score + value[1] * slope[1] - value[2] * slope[2])).sum()
    return float(torch.autograd.grad(term, phi)[0])


ESTIMATORS = [Score(), OverParticles(), OwnSamples(), DisARM()]
PAIRS = [
    (Score(), DisARM()),
    (DisARM(), OverParticles()),
    (DisARM(), DisARM()),
    (OwnSamples(), OwnSamples()),
]
MUTANTS = [
    (Rules(direct="none"), (DisARM(), None)),
    (Rules(direct="base"), (DisARM(), None)),
    (Rules(own_attached=True), (DisARM(), None)),
    (Rules(peers_know=True), (OverParticles(), None)),
    (Rules(stale_later=True), (DisARM(), DisARM())),
]


def name(value: object) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    return "-".join(type(part).__name__ for part in parts)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
@pytest.mark.parametrize("rules", [Rules(), Rules(joint=True)], ids=["row", "joint"])
def test_one_site(bound: str, estimator: Score, rules: Rules) -> None:
    assert error(BOUNDS[bound], rules, estimator, None) < 1e-14


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("pair", PAIRS, ids=name)
@pytest.mark.parametrize("rules", [Rules(), Rules(joint=True)], ids=["row", "joint"])
def test_chain_of_two(bound: str, pair: tuple[Score, Score], rules: Rules) -> None:
    assert error(BOUNDS[bound], rules, *pair) < 1e-14


@pytest.mark.parametrize(("rules", "sites"), MUTANTS)
def test_mutants_fail(rules: Rules, sites: tuple[Score, Score | None]) -> None:
    assert error(iwae, rules, *sites) > 1e-3


@pytest.mark.parametrize("bound", BOUNDS)
def test_rebar_with_a_later_site(bound: str) -> None:
    truth = float(exact(BOUNDS[bound], 2)[0])
    assert rebar_slope(BOUNDS[bound], later_own=True, later_law=True) == pytest.approx(
        truth, abs=1e-9
    )
    assert abs(rebar_slope(BOUNDS[bound], later_own=True, later_law=False) - truth) > 1e-4
    if bound != "elbo":
        assert abs(rebar_slope(BOUNDS[bound], later_own=False, later_law=True) - truth) > 1e-4


def test_swapping_one_row_varies_less_than_swapping_all() -> None:
    for estimator in (OwnSamples(), DisARM()):
        assert variance(iwae, Rules(), estimator) < variance(iwae, Rules(joint=True), estimator)


def test_swapped_charge_equals_closed_forms() -> None:
    base = torch.tensor([0.3, -1.2, 0.4], dtype=DTYPE)
    rows = torch.tensor([[0.1, 0.9, -0.4], [1.5, 0.0, 2.0]], dtype=DTYPE)
    found = swapped(iwae, base, rows)
    for c, k in itertools.product(range(2), range(3)):
        log_w = torch.cat([base[:k], rows[c, k : k + 1], base[k + 1 :]])
        assert found[c, k] == pytest.approx(float(iwae(log_w) - log_w.softmax(0)[k]), abs=1e-14)
    for k in range(3):
        others = torch.cat([base[:k], base[k + 1 :]])
        log_w = torch.cat([base[:k], others.mean().reshape(1), base[k + 1 :]])
        vimco = iwae(log_w) - log_w.softmax(0)[k]
        assert left_out(iwae, base)[k] == pytest.approx(float(vimco), abs=1e-14)


def report(label: str, bound: Bound) -> None:
    ones = [error(bound, Rules(), site, None) for site in ESTIMATORS]
    chains = [error(bound, Rules(), *pair) for pair in PAIRS]
    print(label, f"worst error: one site {max(ones):.0e}, chain {max(chains):.0e}")
    for rules in (Rules(), Rules(joint=True)):
        spread = {name(site): round(variance(bound, rules, site), 5) for site in ESTIMATORS}
        print(label, "variance in phi, joint" if rules.joint else "variance in phi, row", spread)
    print(label, "mutants", [round(error(bound, rules, *sites), 3) for rules, sites in MUTANTS])
    truth = float(exact(bound, 2)[0])
    cases = {"right": (True, True), "law dropped": (True, False), "own detached": (False, True)}
    slopes = {case: f"{rebar_slope(bound, *flags) - truth:.1e}" for case, flags in cases.items()}
    print(label, "REBAR z1, scored z2", slopes)


if __name__ == "__main__":
    for title, rule in BOUNDS.items():
        report(title, rule)
