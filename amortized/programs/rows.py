"""The linear layout: copies of all sites on the rows of one dim, 1 + sum(C - 1) instead of prod C.

Row 0 is the base, an ordinary run. Each further copy of a site has a row that shares the base's
values before the site, takes the copy at the site, and draws every later site anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amortized.estimators.base import Draw, Estimator
from amortized.programs.placement import place_at
from amortized.programs.records import Layout, Span


def lay_out(draw: Draw, layout: Layout, wide: Mapping[int, int]) -> tuple[Draw, Tensor, Span]:
    """A draw on every row, as its estimator sees it; the value that the program sees; its rows.

    The estimator drew C copies for each row of the law. Of these the program sees copy 0 on row 0
    and on the rows of earlier sites, the base's other copies on the site's own rows, and again
    the base on the rows of later sites.
    """
    span = layout.span(draw.site.name, draw.copies)
    placed = place_at(draw, layout.copy_dim, wide)
    event = len(draw.site.law.event_shape)
    row, copy = layout.row_dim - event, layout.copy_dim - event
    base = placed.value.narrow(copy, 0, 1)
    earlier = base.narrow(row, 0, span.start) if base.shape[row] > 1 else None
    first = base.narrow(row, 0, 1)
    own = [placed.value.narrow(copy, c, 1).narrow(row, 0, 1) for c in range(1, draw.copies)]
    before = [first.expand(*_sized(first, row, span.start))] if earlier is None else [earlier]
    after = [first.expand(*_sized(first, row, layout.rows - span.stop))]
    return placed, torch.cat([*before, *own, *after], row), span


def shared(value: Tensor, layout: Layout, event_dims: int = 0) -> Tensor:
    """A value with the rows of later sites set to the base's."""
    row, used = layout.row_dim - event_dims, layout.used
    if layout.rows == 1 or used == layout.rows or value.dim() < -row or value.shape[row] == 1:
        return value
    base = value.narrow(row, 0, 1)
    again = base.expand(*_sized(base, row, layout.rows - used))
    return torch.cat([value.narrow(row, 0, used), again], row)


def shared_draw(draw: Draw, layout: Layout) -> Draw:
    """An ordinary draw on every row, with the rows of later sites set to the base's."""
    value = shared(draw.value, layout, len(draw.site.law.event_shape))
    return draw if value is draw.value else replace(draw, value=value)


def hard_log_q(law: Any, value: Tensor, draw: Draw, span: Span) -> tuple[Tensor, Tensor]:
    """log q of every row at hard values, attached; the same with 0 on the site's relaxed rows."""
    relaxed = relaxed_rows(draw, span)
    if not relaxed:
        found = law.log_prob(value)
        return found, found
    row = span.dim - len(law.event_shape)
    base = value.narrow(row, 0, 1).detach()
    base = base.expand(*_sized(base, row, len(relaxed)))
    before = value.narrow(row, 0, relaxed.start)
    rest = value.narrow(row, relaxed.stop, span.rows - relaxed.stop)
    log_q = law.log_prob(torch.cat([before, base, rest], row))
    counted = torch.ones(span.rows, dtype=log_q.dtype, device=log_q.device)
    counted[relaxed.start : relaxed.stop] = 0.0
    return log_q, log_q * counted.reshape(-1, *(1,) * (-span.dim - 1))


def relaxed_rows(draw: Draw, span: Span) -> range:
    """The rows of a site whose values are no ordinary draws: its last ones."""
    ordinary = draw.copies if draw.ordinary is None else draw.ordinary
    return range(span.start + ordinary - 1, span.stop)


def serves(estimator: Estimator) -> bool:
    """Whether the copies of a site may lie in rows: joint draws, none with weights of its own."""
    return estimator.in_rows and estimator.joint_copies and not estimator.attached


def _sized(value: Tensor, dim: int, size: int) -> list[int]:
    shape = list(value.shape)
    shape[dim] = size
    return shape
