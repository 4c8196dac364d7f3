"""The value of terms: sums over plates of means over particles, rows and copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amortized.programs.records import Layout, Run, Term
from amortized.surrogate.costs import average, carries
from amortized.surrogate.rows import mean_over_rows, ordinary_rows


def total(terms: Iterable[Term], layout: Layout, ordinary: Sequence[int] = (0,)) -> Tensor:
    """The sum over plates of the mean over particles, and ordinary rows, of folded terms."""
    result: Tensor | None = None
    for term in terms:
        term = mean_over_rows(term, layout, ordinary)
        summed = term.value.sum()
        dim = layout.particle_dim
        if layout.num_particles > 1 and term.value.dim() >= -dim and term.value.shape[dim] > 1:
            summed = summed / layout.num_particles
        result = summed if result is None else result + summed
    return torch.zeros(()) if result is None else result


def expectation(term: Term, run: Run) -> Tensor:
    """The detached expectation of one term over copies and particles: its share of the value."""
    value = term.value.detach()
    for latent in reversed(run.latents):
        # asked first: of a hundred plain sites none has a dim of its own
        if latent.draw.axis is not None and carries(value, latent.draw.axis):
            value = average(value, latent).detach()
    ordinary = ordinary_rows(run.latents, run.layout)
    return total([replace(term, value=value)], run.layout, ordinary)
