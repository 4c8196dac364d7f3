"""Antithetic pairs over their uniforms: exact expectations from one node in each cell.

A pair jumps where a uniform passes p or 1 - p, and in between its gradient is at most linear in the
uniform, so the middles of the three cells integrate it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tests.reference import OutcomeTree


def cells(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Middles and widths of the three cells of a uniform between the jumps, on a last dim."""
    p = torch.sigmoid(logits.detach()).unsqueeze(-1)
    edges = torch.cat([0 * p, torch.minimum(p, 1 - p), torch.maximum(p, 1 - p), 0 * p + 1], -1)
    return (edges[..., 1:] + edges[..., :-1]) / 2, edges.diff(dim=-1)


@final
class Middles:
    """A tree of outcomes that needs three nodes for a uniform, exact for what is linear there."""

    def __init__(self, tree: OutcomeTree) -> None:
        self.sample, self.rsample, self._tree = tree.sample, tree.rsample, tree

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        """The middle of a cell."""
        middles, widths = cells(like.expand(tuple(shape)))
        cell = self._tree.sample(torch.distributions.Categorical(probs=widths), site=site)
        return middles.gather(-1, cell.unsqueeze(-1)).squeeze(-1)


@final
class Given:
    """A noise source of known uniforms."""

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms

    def uniform(self, shape: Sequence[int], like: Tensor, *, site: str) -> Tensor:
        """All of them at once; one number is the same for all elements."""
        return self.uniforms.to(like.dtype).expand(tuple(shape))
