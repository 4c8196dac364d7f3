"""Where the copies of a site lie: the law that they are drawn from, and the dim that they get."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
from pyro.distributions.util import broadcast_shape

from amortized.errors import EstimatorError
from amortized.estimators.base import Draw, Site, base_of
from amortized.programs.records import Layout

# copies of dependent sites multiply: beyond these, one step would rather exhaust the memory
_MAX_EVALUATIONS = 16384
_MAX_NUMBERS = 2**27


def per_particle(law: Any, layout: Layout) -> Any:
    """The law with its own draw for each particle, unless it is deterministic."""
    if type(base_of(law)).__name__ == "Delta":
        return law
    shape = broadcast_shape(law.batch_shape, (layout.num_particles, *(1,) * layout.nesting))
    return law if shape == law.batch_shape else law.expand(shape)


def place(draw: Draw, layout: Layout, wide: Mapping[int, int] | None = None) -> Draw:
    """The draw with its leading copy axis moved to the site's private dim.

    Args:
        draw: as the estimator made it.
        layout: gets the dim.
        wide: the size of dims of earlier sites over which the value is repeated, so that each of
            their copies has a slope of its own.

    Raises:
        EstimatorError: copies of dependent sites would be too many.
    """
    refuse_too_many(draw.site, draw.copies, layout)
    return place_at(draw, layout.allocate(draw.site.name), wide or {})


def evaluations(site: Site, copies: int, layout: Layout) -> int:
    """How many values a datum a site has on a private dim of its own."""
    left = len(site.law.batch_shape) - layout.nesting
    return copies * math.prod(site.law.batch_shape[: max(0, left)])


def refuse_too_many(site: Site, copies: int, layout: Layout, *, in_rows: bool = False) -> None:
    """Raise for a site with more values than memory is likely to hold: before they are drawn.

    A site on one copy counts too, where it is drawn anew for the copies of others.

    Raises:
        EstimatorError: too many values a datum, or numbers in all, and what to do.
    """
    if copies == 1 and layout.rows == 1 and not layout.axes:
        return
    law = site.law
    numbers = copies * law.batch_shape.numel() * law.event_shape.numel()
    count = max(layout.rows, layout.used + copies - 1)
    if not in_rows:
        count = evaluations(site, copies, layout)
    if count > _MAX_EVALUATIONS or numbers > _MAX_NUMBERS:
        raise EstimatorError(_too_many(site, copies, count, numbers))


def _too_many(site: Site, copies: int, count: int, numbers: int) -> str:
    own = copies * site.law.event_shape.numel()
    if copies > _MAX_EVALUATIONS or own > _MAX_NUMBERS:
        shown = f"site {site.name!r}: its estimator takes {copies} copies, so that one step would "
        advice = (
            f"the number of copies is that of {site.family} under this estimator: use one whose "
            "copies do not grow with the event, am.ScoreFunction(am.LeaveOneOut()), or "
            "am.Pathwise() where it has rsample"
        )
    else:
        shown = f"site {site.name!r}: with the copies of the sites before it, one step would "
        advice = (
            "copies of dependent sites multiply: use am.ScoreFunction(am.LeaveOneOut()) over "
            "particles, am.ELBO(num_particles=...), for most of them, or am.DisARM() with "
            "VariationalLoss(..., layout='rows'), or smaller batches"
        )
    return (
        f"{shown}evaluate it {count} times a datum, {numbers} numbers in all (at most "
        f"{_MAX_EVALUATIONS} and {_MAX_NUMBERS}); {advice}"
    )


def place_at(draw: Draw, axis: int, wide: Mapping[int, int]) -> Draw:
    """The draw with its leading copy axis moved to a dim."""
    law = draw.site.law
    missing = -axis - 1 - len(law.batch_shape)
    if missing >= 0:
        value = draw.value.reshape(draw.copies, *(1,) * missing, *law.batch_shape, *law.event_shape)
    else:  # dims of earlier sites lie further left, and this one is still of size 1
        value = draw.value.transpose(0, axis - len(law.event_shape)).squeeze(0)
    if wide:
        left = list(value.shape[: value.dim() - len(law.event_shape)])
        left = [1] * (-min(wide) - len(left)) + left
        for dim, size in wide.items():
            left[dim] = size
        value = value.expand(*left, *law.event_shape)
    return replace(draw, value=value, axis=axis, root=draw.root if draw.root is not None else value)


def unmasked(fn: Any) -> Any:
    """The law that the value is drawn from: masks remove terms, not randomness."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        inner = unmasked(fn.base_dist)
        if inner is not fn.base_dist:
            return dist.Independent(inner, fn.reinterpreted_batch_ndims)
    return fn
