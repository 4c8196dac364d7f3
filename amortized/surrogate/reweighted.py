"""Objectives whose samples are data: their bounds of the tables of log p and log q."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.objectives.base import Reweighted
from amortized.programs.records import Plates, Run, Term
from amortized.surrogate.assemble import Assembled
from amortized.surrogate.bound import reduced
from amortized.surrogate.costs import padded
from amortized.surrogate.outer import shared_plates


def weigh_particles(run: Run, objective: Reweighted, factor: Tensor | float) -> dict[str, Tensor]:
    """The objective's bounds, summed over the shared plates with the scale outside the logarithm.

    Args:
        run: on ``objective.num_particles`` particles, whose values are constants.
        objective: the bounds.
        factor: the scale of every term, or of the subsampled plates that all terms share.
    """
    shared = shared_plates(run)
    log_p = _table([t for t in run.terms if t.in_model], run, shared, factor)
    minus_log_q = _table([t for t in run.terms if not t.in_model], run, shared, factor)
    bounds = objective.bounds(log_p, -minus_log_q)
    return {whose: (bound * factor).sum() for whose, bound in bounds.items()}


def log_q_of_simulation(run: Run) -> Tensor:
    """log q of what the model drew, summed over everything with the program's scales."""
    parts = [-term.value.sum() for term in run.terms if term.role == "guide"]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def summed(parts: dict[str, Tensor]) -> Assembled:
    """The sum of bounds, which keeps what each of model and guide maximizes."""
    total = torch.stack(list(parts.values())).sum() if parts else torch.zeros(())
    return Assembled(total, [], {whose: part.detach() for whose, part in parts.items() if whose})


def _table(terms: list[Term], run: Run, shared: Plates, factor: Tensor | float) -> Tensor:
    """The sum of terms for each particle and element of the shared plates, ``[K, *plates]``."""
    layout = run.layout
    total = torch.zeros(())
    for term in terms:
        total = total + reduced(term, shared, factor)
    total = padded(total, layout.particle_dim)
    return total.expand(layout.num_particles, *total.shape[1:])
