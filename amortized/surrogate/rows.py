"""Sites whose copies lie in rows: their cost copy by copy, and the mean over ordinary rows.

An estimator sees the copies of its site on a dim of their own, as elsewhere; its surrogate is
charged on the base. The other rows of a term are whole ordinary trajectories, except relaxed ones,
so the value and every gradient through values are averaged over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amortized.estimators.base import Cost
from amortized.estimators.elements import finite
from amortized.programs.records import LatentSite, Layout, Span, Term
from amortized.programs.rows import relaxed_rows, shared
from amortized.surrogate.costs import padded


def cost_of_copies(cost: Cost, span: Span, layout: Layout) -> Cost:
    """The cost of each copy, on the dim that estimators see; of all rows in ``cost``."""
    rows, axis = span.dim, layout.copy_dim
    every = padded(cost.copies, axis)
    if every.shape[rows] == 1:
        return Cost(every, total=cost.total)
    picked = [0, *range(span.start, span.stop)]
    copies = torch.cat([every.narrow(rows, row, 1) for row in picked], axis)
    return Cost(copies, total=cost.total)


def on_base(value: Tensor, span: Span) -> Tensor:
    """What a surrogate is on row 0."""
    if value.dim() < -span.dim or value.shape[span.dim] == 1:
        return value
    return value.narrow(span.dim, 0, 1)


def scores_of_relaxed_rows(
    latent: LatentSite, cost: Cost, latents: Sequence[LatentSite]
) -> Tensor | None:
    """The score function of a site on rows where an earlier one is relaxed; else zero.

    There the site is an ordinary draw from a law that depends on the relaxed value, and an
    estimator that differentiates its cost needs that dependence (theory: a slope through draws but
    not through laws is biased). The baseline is the cost of the base.
    """
    span, log_q = latent.span, latent.hard_log_q
    if span is None or log_q is None:
        return None
    marked = torch.zeros(span.rows, dtype=log_q.dtype, device=log_q.device)
    for earlier in latents:
        if earlier.order < latent.order and earlier.span is not None:
            if earlier.estimator.differentiates_cost:
                rows = relaxed_rows(earlier.draw, earlier.span)
                marked[rows.start : rows.stop] = 1.0
    every = padded(cost.copies, span.dim)
    if every.shape[span.dim] == 1:
        return None
    gain = every - every.narrow(span.dim, 0, 1)
    mark = marked.reshape(-1, *(1,) * (-span.dim - 1))
    return (log_q - log_q.detach()) * (finite(gain) * mark)


def repeated(
    value: Tensor, latent: LatentSite, latents: Sequence[LatentSite], layout: Layout
) -> Tensor:
    """A surrogate whose rows of later sites are the base's again."""
    if layout.rows == 1:
        return value
    spans = {s.name: s.span for s in latents if s.span is not None and s.order < latent.order}
    return shared(value, replace(layout, spans=spans))


def ordinary_rows(latents: Sequence[LatentSite], layout: Layout) -> list[int]:
    """The rows that are complete draws of the guide."""
    if layout.rows == 1:
        return [0]
    relaxed: set[int] = set()
    for latent in latents:
        if latent.span is not None:
            own = range(latent.span.start, latent.span.stop)
            bad = own if latent.estimator.base_only else relaxed_rows(latent.draw, latent.span)
            relaxed |= {*bad}
    return [row for row in range(layout.rows) if row not in relaxed]


def mean_over_rows(term: Term, layout: Layout, ordinary: Sequence[int]) -> Term:
    """A term whose rows, if it has them, are averaged over the ordinary ones."""
    value, dim = term.value, layout.row_dim
    if layout.rows == 1 or value.dim() < -dim or value.shape[dim] == 1:
        return term
    if len(ordinary) == layout.rows:
        return replace(term, value=value.mean(dim, keepdim=True))
    if list(ordinary) == [0]:
        return replace(term, value=value.narrow(dim, 0, 1))
    index = torch.tensor(ordinary, device=value.device)
    return replace(term, value=value.index_select(value.dim() + dim, index).mean(dim, keepdim=True))
