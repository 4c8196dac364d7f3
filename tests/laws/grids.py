"""Expectations over an estimator's uniform noise, as a weighted plate: one run is the integral.

Each element of a plate sees one node of a quadrature, and a scale gives it the node's weight. So
the gradient of one run is the estimator's mean gradient, up to the error of the quadrature.

    grid = Grid(tanh_sinh([p]), tanh_sinh([]))           # u has a kink at p, v has none

    def guide():
        with pyro.plate("grid", grid.size), poutine.scale(scale=grid.weights):
            ...
    loss.estimate(model, guide, (), {}, noise=grid)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution

Rule = tuple[Tensor, Tensor]
"""Nodes in (0, 1) and weights that sum to one."""


def tanh_sinh(kinks: Sequence[float], nodes: int = 48) -> Rule:
    """A double-exponential rule between kinks, for smooth functions, also singular at the ends."""
    t = torch.linspace(-3.4, 3.4, nodes, dtype=torch.float64)
    inner = math.pi / 2 * torch.sinh(t)
    weight = math.pi / 2 * torch.cosh(t) / torch.cosh(inner) ** 2
    weight = weight / weight.sum()
    return _pieces(kinks, torch.sigmoid(2 * inner), weight)


def gauss(kinks: Sequence[float], nodes: int = 4) -> Rule:
    """A Gauss-Legendre rule between kinks: exact for polynomials of degree ``2 * nodes - 1``."""
    jacobi = torch.diag(
        torch.tensor([k / math.sqrt(4 * k * k - 1) for k in range(1, nodes)], dtype=torch.float64),
        1,
    )
    values, vectors = torch.linalg.eigh(jacobi + jacobi.T)
    return _pieces(kinks, (values + 1) / 2, vectors[0] ** 2)


def _pieces(kinks: Sequence[float], nodes: Tensor, weights: Tensor) -> Rule:
    ends = [0.0, *sorted(kinks), 1.0]
    parts = [(a + (b - a) * nodes, (b - a) * weights) for a, b in pairwise(ends)]
    return torch.cat([u for u, _ in parts]), torch.cat([w for _, w in parts])


@final
class Grid:
    """A noise source for programs whose latents lie in a plate of ``size`` elements.

    Every scalar uniform that the programs ask for takes the next rule, in order; each has to be
    asked for once. Draws of distributions are refused: enumerate, or fix, what is not integrated.
    """

    def __init__(self, *rules: Rule) -> None:
        nodes = torch.cartesian_prod(*[u for u, _ in rules]).reshape(-1, len(rules))
        weights = torch.cartesian_prod(*[w for _, w in rules]).reshape(-1, len(rules))
        self.nodes, self.weights = nodes, weights.prod(-1)
        self.size = len(nodes)
        self.used = 0

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        """The next columns; the plate is the dim of the grid's size."""
        at = list(shape).index(self.size)
        others = [size for place, size in enumerate(shape) if place != at]
        count = math.prod(others)
        columns = self.nodes[:, self.used : self.used + count]
        if columns.shape[1] < count:
            raise RuntimeError(f"site {site!r} asks for more uniforms than there are rules")
        self.used += count
        return columns.T.reshape(*others, self.size).movedim(-1, at).to(like.dtype)

    def sample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        """Refused."""
        raise RuntimeError(f"site {site!r} draws from {fn}, and a grid has uniforms only")

    def rsample(self, fn: Distribution, sample_shape: Sequence[int] = (), *, site: str) -> Tensor:
        """Refused, like `sample`."""
        raise RuntimeError(f"site {site!r} draws from {fn}, and a grid has uniforms only")
