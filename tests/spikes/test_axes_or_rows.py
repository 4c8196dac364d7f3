"""Spike (d): private axes or linear rows, on a chain of dependent Bernoulli layers.

Guide x -> z1 -> ... -> zL, model zL -> ... -> z1 -> x. The same estimators (draw, redraw,
surrogate) serve both layouts; independent particles are the alternative.
Run as a script for the table.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector


class Chain(nn.Module):
    def __init__(self, layers: int, width: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers, self.rows = layers, 0
        self.top = nn.Parameter(torch.randn(width, generator=generator, dtype=dtype))
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        for stack in (self.up, self.down):
            for _ in range(layers):
                layer = nn.Linear(width, width, dtype=dtype)
                nn.init.normal_(layer.weight, 0.0, 1.5 / width**0.5, generator)
                nn.init.normal_(layer.bias, 0.0, 0.5, generator)
                stack.append(layer)

    def law(self, site: int, parent: Tensor) -> Tensor:
        """Logits of z_site given the layer below (`parent`), sites from 0."""
        self.rows += parent[..., 0, 0].numel()
        return self.up[site](parent - 0.5)

    def log_joint(self, values: list[Tensor], x: Tensor) -> list[Tensor]:
        """log p(x | z1), log p(z1 | z2), ..., log p(zL)."""
        below, terms = [x, *values[:-1]], []
        for layer, low, high in zip(self.down, below, values, strict=True):
            self.rows += high[..., 0, 0].numel()
            terms.append(log_bernoulli(layer(high - 0.5), low))
        return [*terms, log_bernoulli(self.top, values[-1])]


def log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    """Summed over the layer's units: [..., batch]."""
    return -F.softplus(torch.where(value > 0.5, -logits, logits)).sum(-1)


def zeroed(term: Tensor) -> Tensor:
    return term - term.detach()


# ---------------------------------------- noise and estimators: they know no layout


class Random:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.weight = torch.ones(())

    def uniform(self, prob: Tensor) -> Tensor:
        return torch.rand(prob.shape, generator=self._generator, dtype=prob.dtype)


class Cells:
    """Width 1: each uniform runs over the cells on which the bits of (u, 1 - u) are constant."""

    def __init__(self, scalars: int, cells: int) -> None:
        codes = list(itertools.product(range(cells), repeat=scalars))
        self._codes, self._cells, self._used = torch.tensor(codes).T, cells, 0
        self.points = len(codes)
        self.weight = torch.ones(len(codes), dtype=torch.float64)

    def uniform(self, prob: Tensor) -> Tensor:
        prob = prob.detach()[..., 0]
        scalars = prob[..., 0].numel()
        code = self._codes[self._used : self._used + scalars].reshape(prob.shape)
        self._used += scalars
        inner = (
            [prob]
            if self._cells == 2
            else [torch.minimum(prob, 1 - prob), torch.maximum(prob, 1 - prob)]
        )
        edges = torch.stack([torch.zeros_like(prob), *inner, torch.ones_like(prob)])
        low, high = edges.gather(0, code[None])[0], edges.gather(0, code[None] + 1)[0]
        self.weight = self.weight * (high - low).reshape(-1, prob.shape[-1]).prod(0)
        return ((low + high) / 2).unsqueeze(-1)


Noise = Random | Cells


@dataclass(frozen=True)
class Draw:
    value: Tensor  # [C, ..., batch, width]; copy 0 is the base copy, an ordinary draw
    logits: Tensor


class LeaveOneOut:
    cells = 2

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        return Draw(torch.stack([self.redraw(logits, noise) for _ in range(2)]), logits)

    def redraw(self, logits: Tensor, noise: Noise) -> Tensor:
        """One ordinary draw a row, for rows that left the base trajectory at an earlier site."""
        prob = logits.detach().sigmoid()
        return (noise.uniform(prob) < prob).to(prob.dtype)

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor:
        score = zeroed(log_bernoulli(draw.logits, draw.value))
        return (score * (cost - cost.flip(0)).detach()).mean(0)


class DisARM(LeaveOneOut):
    cells = 3

    def draw(self, logits: Tensor, noise: Noise) -> Draw:
        prob = logits.detach().sigmoid()
        u = noise.uniform(prob)
        return Draw(torch.stack([u < prob, 1 - u < prob]).to(prob.dtype), logits)

    def surrogate(self, draw: Draw, cost: Tensor) -> Tensor:
        first, second = draw.value
        sign = torch.where(second > 0, -1.0, 1.0) * (first != second)
        factor = sign * draw.logits.detach().abs().sigmoid()
        return (
            zeroed(draw.logits) * factor * (0.5 * (cost[0] - cost[1])).detach().unsqueeze(-1)
        ).sum(-1)


# ---------------------------------------- the layouts: objective per datum [batch]


def axes(chain: Chain, x: Tensor, rule: LeaveOneOut, noise: Noise) -> Tensor:
    """z_s is [2 (own), 2 (z_{s-1}'s), ..., 2 (z_1's), batch, width]."""
    draws, parent = [], x
    for site in range(chain.layers):
        draws.append(rule.draw(chain.law(site, parent), noise))
        parent = draws[-1].value
    terms = chain.log_joint([draw.value for draw in draws], x)
    terms += [-log_bernoulli(draw.logits, draw.value).detach() for draw in draws]
    for draw in reversed(draws):
        dims = draw.value.dim() - 1
        cost = torch.stack([term for term in terms if term.dim() == dims]).sum(0)
        terms = [term for term in terms if term.dim() != dims]
        terms.append(cost.mean(0) + rule.surrogate(draw, cost))
    return torch.stack(terms).sum(0)


def rows(
    chain: Chain, x: Tensor, rule: LeaveOneOut, noise: Noise, average: bool = True, mutant: str = ""
) -> Tensor:
    """Row 0 is the base; row s + 1 leaves it at site s. Every site is evaluated at all rows."""
    count = chain.layers + 1
    draws, values, own, parent = [], [], [], x.expand(count, *x.shape)
    for site in range(chain.layers):
        logits = chain.law(site, parent)
        draw = rule.draw(logits[0], noise)
        left = rule.redraw(logits[1 : site + 1], noise)
        if mutant == "later sites kept":
            left = draw.value[:1].expand_as(left)
        base = draw.value[:1]
        still = base.expand(count - site - 2, *base.shape[1:])
        parent = torch.cat([base, left, draw.value[1:], still])
        draws.append(draw)
        values.append(parent)
        own.append(-log_bernoulli(logits, parent).detach())
    terms = chain.log_joint(values, x)
    cost = torch.stack([*terms, *own]).sum(0)
    total = cost.mean(0) if average else cost[0]
    for site, draw in enumerate(draws):
        pair = cost[[0, site + 1]]
        total = total + rule.surrogate(draw, pair.flip(0) if mutant == "rows exchanged" else pair)
    return total


def particles(chain: Chain, x: Tensor, noise: Noise, count: int) -> Tensor:
    """Independent runs; leave-one-out over them, each site charged by execution order."""
    values, log_q, parent = [], [], x.expand(count, *x.shape)
    for site in range(chain.layers):
        logits = chain.law(site, parent)
        parent = LeaveOneOut().redraw(logits, noise)
        values.append(parent)
        log_q.append(log_bernoulli(logits, parent))
    model = torch.stack(chain.log_joint(values, x)).sum(0)
    total = model - torch.stack(log_q).sum(0).detach()
    for site in range(chain.layers):
        cost = (model - torch.stack(log_q[site:]).sum(0)).detach()
        total = total + zeroed(log_q[site]) * (cost - cost.mean(0)) * count / (count - 1)
    return total.mean(0)


Layout = Callable[[Chain, Tensor, LeaveOneOut, Noise], Tensor]


# ---------------------------------------- oracle and laws


def gradient(chain: Chain, value: Tensor) -> Tensor:
    chain.zero_grad()
    value.backward()
    grads = [leaf.grad for leaf in chain.parameters()]
    assert all(grad is not None for grad in grads)
    return parameters_to_vector(grads)


def exact(chain: Chain) -> Tensor:
    """Width 1, x = 1: the sum over all 2^L paths."""
    paths = torch.tensor(
        list(itertools.product([0.0, 1.0], repeat=chain.layers)), dtype=torch.float64
    )
    values = list(paths.T.unsqueeze(-1))
    x = torch.ones_like(values[0])
    laws = [chain.law(site, parent) for site, parent in enumerate([x, *values[:-1]])]
    log_q = sum(log_bernoulli(law, value) for law, value in zip(laws, values, strict=True))
    log_p = torch.stack(chain.log_joint(values, x)).sum(0)
    return gradient(chain, (log_q.exp() * (log_p - log_q)).sum())


def scalars(layout: Layout, rule: LeaveOneOut, layers: int) -> int:
    own = 1 if isinstance(rule, DisARM) else 2
    if layout is axes:
        return sum(own * 2**site for site in range(layers))
    return sum(own + site for site in range(layers))


def expected(layout: Layout, rule: LeaveOneOut, layers: int = 3, **options: object) -> Tensor:
    chain = Chain(layers, 1)
    noise = Cells(scalars(layout, rule, layers), rule.cells)
    x = torch.ones(noise.points, 1, dtype=torch.float64)
    value = layout(chain, x, rule, noise, **options)
    return gradient(chain, (noise.weight * value).sum())


RULES = [LeaveOneOut(), DisARM()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("layout", [axes, rows])
def test_three_layers_exact(layout: Layout, rule: LeaveOneOut) -> None:
    assert float((expected(layout, rule) - exact(Chain(3, 1))).abs().max()) < 1e-13


def test_rows_exact_with_base_only() -> None:
    found = expected(rows, LeaveOneOut(), average=False)
    assert float((found - exact(Chain(3, 1))).abs().max()) < 1e-13


@pytest.mark.parametrize("mutant", ["later sites kept", "rows exchanged"])
def test_mutants_of_rows_fail(mutant: str) -> None:
    assert (
        float((expected(rows, LeaveOneOut(), mutant=mutant) - exact(Chain(3, 1))).abs().max())
        > 1e-3
    )


def z_scores(
    layout: Layout, rule: LeaveOneOut, chunks: int = 60, size: int = 500, **options: object
) -> Tensor:
    chain = Chain(5, 1)
    x = torch.ones(size, 1, dtype=torch.float64)
    draws = [layout(chain, x, rule, Random(seed), **options).mean() for seed in range(chunks)]
    found = torch.stack([gradient(chain, draw) for draw in draws])
    return (found.mean(0) - exact(chain)) / (found.std(0) / chunks**0.5)


@pytest.mark.parametrize("layout", [axes, rows])
def test_five_layers_z(layout: Layout) -> None:
    """25 coordinates, Student t with 59 degrees of freedom: false alarm about 1e-4 at 5.2."""
    assert float(z_scores(layout, LeaveOneOut()).abs().max()) < 5.2


def test_five_layers_mutant_z() -> None:
    assert float(z_scores(rows, LeaveOneOut(), mutant="later sites kept").abs().max()) > 5.2


# ---------------------------------------- what it costs


class Saved:
    """Bytes that the graph keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


LAYOUTS: dict[str, Layout] = {
    "axes, LOO": axes,
    "rows, LOO": rows,
    "rows base, LOO": lambda chain, x, rule, noise: rows(chain, x, rule, noise, average=False),
    "particles L+1": lambda chain, x, rule, noise: particles(chain, x, noise, chain.layers + 1),
    "particles 2": lambda chain, x, rule, noise: particles(chain, x, noise, 2),
    "axes, DisARM": lambda chain, x, rule, noise: axes(chain, x, DisARM(), noise),
    "rows, DisARM": lambda chain, x, rule, noise: rows(chain, x, DisARM(), noise),
}


@dataclass(frozen=True)
class Measured:
    evaluations: int
    seconds: float
    megabytes: float
    guide_variance: float
    model_variance: float


def measure(layout: Layout, layers: int, width: int, repeats: int) -> Measured:
    chain = Chain(layers, width, torch.float32)
    x = (torch.rand(64, width, generator=torch.Generator().manual_seed(5)) < 0.4).float()
    seconds, found, saved = [], [], Saved()
    guide = sum(leaf.numel() for leaf in chain.up.parameters())
    for seed in range(repeats):
        chain.rows = 0
        start = time.process_time()
        grads = gradient(chain, layout(chain, x, LeaveOneOut(), Random(seed)).mean())
        seconds.append(time.process_time() - start)
        found.append(grads)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        layout(chain, x, LeaveOneOut(), Random(0)).mean()
    variance = torch.stack(found).var(0)
    top = chain.top.numel()
    return Measured(
        chain.rows,
        statistics.median(seconds),
        sum(saved.sizes.values()) / 2**20,
        float(variance[top : top + guide].sum()),
        float(variance[:top].sum() + variance[top + guide :].sum()),
    )


def table(layers: int, width: int, repeats: int) -> None:
    print(f"\n{layers} layers, width {width}, batch 64, float32, {repeats} gradients")
    print(f"{'layout':16}{'evals':>7}{'cpu ms':>9}{'MiB':>9}{'var guide':>11}{'var model':>11}")
    for label, layout in LAYOUTS.items():
        seen = measure(layout, layers, width, repeats)
        print(
            f"{label:16}{seen.evaluations:7}{1e3 * seen.seconds:9.2f}{seen.megabytes:9.2f}"
            f"{seen.guide_variance:11.2f}{seen.model_variance:11.3f}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in ((3, 20, 200), (5, 20, 200), (5, 60, 100), (5, 200, 60), (8, 20, 60)):
        table(*case)
