"""What each latent is charged: the terms downstream of it, and what its estimator then owes.

A site on several copies has a private dim. Every term that carries the dim can depend on the site;
summed over the plates that the site is not in, these terms are the downstream cost of each copy.
Their weighted average replaces them, and the estimator adds what it owes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from amortized.errors import ProgramError, quoted
from amortized.estimators.base import Cost
from amortized.estimators.baselines import mean_of_others
from amortized.programs.records import LatentSite, Layout, Plates, Term
from amortized.surrogate.order import Leak, depends, downstream, position


def order_cost(
    terms: list[Term],
    latent: LatentSite,
    leaks: list[Leak],
    weighted: Iterable[LatentSite] = (),
) -> Cost | None:
    """The downstream cost by execution order, in the plates of the site."""
    return _cost([t for t in terms if downstream(t, latent)], latent, leaks, weighted)


@final
class Downstream:
    """`order_cost`, detached, without leaks or copies, of latents last to first.

    What is downstream of a site is downstream of every earlier one, so each term is added once, to
    a running sum for its plates; adding up afresh would take the square of the number of sites.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        # surrogates have value zero, and nobody differentiates these sums
        valued = [t for t in terms if t.role != "surrogate"]
        self._model = sorted((t for t in valued if t.in_model), key=position)
        self._guide = sorted((t for t in valued if not t.in_model), key=position)
        self._sums: dict[Plates, Tensor] = {}

    def cost(self, latent: LatentSite) -> Cost | None:
        """The downstream cost of a site that is not later than the one before."""
        self._take(self._model, latent.first_in_model)
        self._take(self._guide, latent.order)
        cost: Tensor | None = None
        for plates, summed in self._sums.items():
            part = _onto_plates(summed, plates, latent.plates)
            cost = part if cost is None else cost + part
        return None if cost is None else Cost(cost)

    def _take(self, waiting: list[Term], first: float) -> None:
        while waiting and position(waiting[-1]) >= first:
            term = waiting.pop()
            value, summed = term.value.detach(), self._sums.get(term.plates)
            self._sums[term.plates] = value if summed is None else summed + value


def fold(
    terms: list[Term],
    latent: LatentSite,
    leaks: list[Leak],
    weighted: Iterable[LatentSite] = (),
) -> tuple[list[Term], Cost | None]:
    """Average the terms on the site's private dim over its copies; also the cost of each copy."""
    dependent, kept = [], []
    for term in terms:
        (dependent if carries(term.value, latent.draw.axis) else kept).append(term)
    for term in dependent:
        refuse_entangled(term, latent)
        shared = term.plates & latent.plates
        value = average(_onto_plates(term.value, term.plates, shared), latent)
        kept.append(replace(term, value=value, plates=shared))
    return kept, _cost(dependent, latent, leaks, weighted)


def _cost(
    terms: list[Term], latent: LatentSite, leaks: list[Leak], weighted: Iterable[LatentSite]
) -> Cost | None:
    """The sum of terms in the plates of the site, with a differentiable total if it is asked for.

    Before a plate is summed, sites in it whose copies have weights of their own for each element,
    and on which this site does not depend, are averaged: afterwards only the weights of the
    element that is charged would be at hand.
    """
    cost: Tensor | None = None
    total: Tensor | None = None
    slopes = latent.estimator.differentiates_cost
    for term in terms:
        value = term.value if slopes else term.value.detach()
        apart = latent.plates - {leak.plate for leak in leaks if leak.reaches(term)}
        for other in weighted:
            if other.plates & (term.plates - apart) and _averages_for(other, latent, value):
                value = average(value, other)
                value = value if slopes else value.detach()
        if slopes:
            # each term once: an element's cost may hold what it shares with other elements
            total = value.sum() if total is None else total + value.sum()
        part = _onto_plates(value.detach(), term.plates, apart)
        cost = part if cost is None else cost + part
    return None if cost is None else Cost(cost, total=total)


def _averages_for(other: LatentSite, latent: LatentSite, value: Tensor) -> bool:
    """Whether a value still stands at the copies of another site, and the site itself does not."""
    axis = other.draw.axis
    open_copies = other is not latent and carries(value, axis)
    return open_copies and axis is not None and not depends(latent, axis)


def per_datum(cost: Cost, latent: LatentSite, layout: Layout) -> Cost:
    """A cost with the subsampling divided out, and what other particles say of it."""
    copies, total = cost.copies, cost.total
    if _subsampled(latent):
        copies = copies / latent.plate_scale
        total = None if total is None else total / latent.plate_scale
    if layout.num_particles == 1 or latent.draw.axis is not None:
        return Cost(copies, total=total)
    return Cost(copies, mean_of_others(copies, layout.particle_dim), total)


def _subsampled(latent: LatentSite) -> bool:
    return isinstance(latent.plate_scale, Tensor) or latent.plate_scale != 1.0


def owed(latent: LatentSite, cost: Cost) -> list[Term]:
    """The estimator's surrogate as a term, computed per datum and scaled back."""
    return scaled(latent, latent.estimator.surrogate(latent.draw, cost))


def scaled(latent: LatentSite, owed: Tensor | None) -> list[Term]:
    """What a site owes per datum as a term, if it owes anything."""
    if owed is None:
        return []
    value = owed * latent.plate_scale if _subsampled(latent) else owed
    return [Term(latent.name, "surrogate", value, latent.plates, latent.order)]


def padded(value: Tensor, dim: int) -> Tensor:
    """A tensor with dims of size 1 on the left, as far as a dim counted from the right."""
    return value.reshape(*(1,) * max(0, -dim - value.dim()), *value.shape)


def carries(value: Tensor, axis: int | None) -> bool:
    """Whether a tensor has copies on a private dim."""
    return axis is not None and value.dim() >= -axis and value.shape[axis] > 1


def average(value: Tensor, latent: LatentSite) -> Tensor:
    """The weighted mean over the site's copies, its dim kept with size 1."""
    axis = latent.draw.axis
    if axis is None:
        return value
    if latent.estimator.base_only:
        return value.narrow(axis, 0, 1)
    weights = latent.estimator.weights(latent.draw)
    if weights is None:
        return value.mean(axis, keepdim=True)
    # an impossible value has weight 0 and an infinite cost: it contributes nothing
    possible = torch.where(weights > 0, value, torch.zeros_like(value))
    return (weights * possible).sum(axis, keepdim=True)


def _onto_plates(value: Tensor, plates: Plates, target: Plates) -> Tensor:
    """Sum out the plates that the target lacks (dims kept, so that others stay aligned)."""
    dims = [dim for _, dim in plates - target if value.dim() >= -dim]
    return value.sum(dims, keepdim=True) if dims else value


def refuse_entangled(term: Term, latent: LatentSite) -> None:
    """Raise for a term that depends on the copies of all elements of a plate together.

    Raises:
        ProgramError: elements have copies side by side, and the term is not in their plate.
    """
    if not latent.plates <= term.plates and not latent.estimator.joint_copies:
        raise ProgramError(_entangled(term, latent))


def _entangled(term: Term, latent: LatentSite) -> str:
    names = sorted(name for name, _ in latent.plates - term.plates)
    if term.sums:
        return (
            f"site {latent.name!r} is evaluated for all elements of plate {names[0]!r} in parallel "
            f"by {latent.estimator!r}, but the model's sum over {quoted(term.sums, 3)} joins them: "
            "it would see all elements at the same copy only. Put what is summed out into the "
            "plate, enumerate it in the guide, or use am.ScoreFunction(am.LeaveOneOut()) here, "
            "whose copies are joint draws"
        )
    return (
        f"site {latent.name!r} is evaluated for all elements of plate {names[0]!r} in parallel by "
        f"{latent.estimator!r}, but site {term.name!r} outside that plate comes after it and may "
        "depend on it: it would see all elements at the same copy only. Put that site into the "
        "plate or before this one, or use am.ScoreFunction(am.LeaveOneOut()) here, whose copies "
        "are joint draws"
    )
