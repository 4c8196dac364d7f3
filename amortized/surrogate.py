"""From terms to one scalar with the right value and the right gradient.

Latents are folded last to first in guide order (iterated expectation):

* a site on several copies has a private dim. Every term that carries the dim can depend on the
  site; summed over the plates that the site is not in, these terms are the downstream cost of each
  copy. Their weighted average replaces them, and the estimator adds what it owes.
* a site on one copy leaves no trace in shapes, so its downstream cost is decided by execution
  order and plates: guide terms at or after it, and model terms at or after the first model
  occurrence of it or of any later guide site. Tags on tensors would be lost at ``.item()``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from amortized.errors import ProgramError
from amortized.estimators.base import Cost
from amortized.estimators.baselines import mean_of_others
from amortized.programs.records import LatentSite, Layout, Plates, Role, Run, Term
from amortized.programs.sequential import Tree


@dataclass(frozen=True, eq=False)
class Assembled:
    """The bound of a run and what each site that owes a surrogate was charged.

    ``bound`` is a scalar in nats whose gradient is the estimate. ``costs`` are detached, per datum
    (subsampling divided out), and what estimators learn from.
    """

    bound: Tensor
    costs: list[tuple[LatentSite, Cost]]


def assemble(run: Run) -> Assembled:
    """Fold the latents of a run, last to first, into an additive bound."""
    terms = list(run.terms)
    costs: list[tuple[LatentSite, Cost]] = []
    weighted = [s for s in run.latents if s.draw.axis and not s.estimator.joint_copies]
    copies = any(s.draw.axis for s in run.latents)
    running: _Downstream | None = None
    for latent in _folding_order(run.latents):
        leaks = _leaks(latent, run.latents)
        if latent.draw.axis is not None:
            terms, cost = _fold(terms, latent, leaks, weighted)
        elif copies or leaks or latent.order < 0 or latent.estimator.differentiates_cost:
            # a hand-made draw (order -1) reaches everything, the sites before it do not
            cost = _order_cost(terms, latent, leaks, weighted)
        else:
            running = running or _Downstream(terms)
            cost = running.cost(latent)
        if cost is not None:
            handed = _per_datum(cost, latent, run.layout)
            terms += _owed(latent, handed)
            costs.append((latent, handed.detach()))
    return Assembled(total(terms, run.layout), costs)


def _folding_order(latents: list[LatentSite]) -> Iterator[LatentSite]:
    """Last to first, except that a site summed out goes before later sites outside its plates.

    Such a later site would sum the plate while every element still stands at the same copy. If
    none of the sites left depends on the copies, the expectations may be taken in either order.
    """
    # a pathwise site owes nothing and has nothing to average: it stands in nobody's way
    waiting = [s for s in latents if s.draw.axis is not None or not s.estimator.attached]
    if all(latent.draw.axis is None or not latent.estimator.attached for latent in waiting):
        yield from reversed(waiting)
        return
    while waiting:
        early = next((e for e in waiting[:-1] if _may_go_first(e, waiting)), None)
        latent = early or waiting[-1]
        waiting.remove(latent)
        yield latent


def _may_go_first(latent: LatentSite, waiting: list[LatentSite]) -> bool:
    axis = latent.draw.axis
    if axis is None or not latent.estimator.attached:
        return False
    others = [other for other in waiting if other is not latent]
    later = [other for other in others if other.order > latent.order]
    outside = any(not latent.plates <= other.plates for other in later)
    return outside and not any(_depends(other, axis) for other in others)


def _depends(latent: LatentSite, axis: int) -> bool:
    """Whether a site was drawn anew for each copy on an axis."""
    shape = latent.draw.site.law.batch_shape
    return len(shape) >= -axis and shape[axis] > 1


@dataclass(frozen=True)
class _Leak:
    """Where the elements of a plate stop being apart: a later latent outside the plate.

    It may depend on all elements, and so may every term from there on, in the plate or not.
    """

    plate: tuple[str, int]
    guide_order: int
    model_order: float

    def reaches(self, term: Term) -> bool:
        """Whether a term may come after the latent."""
        return term.order >= (self.model_order if term.in_model else self.guide_order)


def _leaks(latent: LatentSite, latents: list[LatentSite], by_shape: bool = True) -> list[_Leak]:
    """The leaks of a site's plates. Copies show in shapes who depends on them; else order does."""
    axis = latent.draw.axis if by_shape else None
    found = []
    for later in latents:
        if later.order <= latent.order or latent.plates <= later.plates:
            continue
        if axis is None or _depends(later, axis):
            for plate in latent.plates - later.plates:
                found.append(_Leak(plate, later.order, later.first_in_model))
    return found


def assemble_trees(trees: list[Tree]) -> tuple[Assembled, Run]:
    """The mean over particles of sequential runs; also a run whose terms are averaged already."""
    costs: list[tuple[LatentSite, Cost]] = []
    bounds, shares = [], []
    for tree in trees:
        terms, parts = _fold_tree(tree, costs)
        bounds.append(total(terms, tree.run.layout))
        shares += [replace(t, value=t.value / len(trees)) for t in parts]
    first = trees[0]
    nodes = {node.name: node for node in first.nodes()}
    latents = [replace(latent, draw=nodes[latent.name].placed) for latent in first.run.latents]
    return (
        Assembled(torch.stack(bounds).mean(), costs),
        replace(
            first.run,
            terms=shares,
            latents=latents,
            runs=sum(1 for tree in trees for _ in tree.runs()),
        ),
    )


def _fold_tree(tree: Tree, costs: list[tuple[LatentSite, Cost]]) -> tuple[list[Term], list[Term]]:
    """Fold a tree from its leaves: terms with surrogates, and the detached share of each term."""
    if tree.node is None:
        detached = [replace(t, value=t.value.detach()) for t in tree.run.terms]
        return list(tree.run.terms), detached
    folded = [_fold_tree(branch, costs) for branch in tree.branches]
    latent = replace(
        tree.latent(tree.node.name),
        draw=tree.node.placed,
        first_in_model=tree.first_in_model(tree.node.name),
    )
    leaks = [leak for run in tree.runs() for leak in _leaks(latent, run.latents, by_shape=False)]
    terms, shares = folded[0]
    if latent.draw.axis is None:
        cost = None if latent.estimator.attached else _order_cost(terms, latent, leaks)
    else:
        stacked = _stack([terms for terms, _ in folded], latent)
        parts = _stack([parts for _, parts in folded], latent)
        terms, cost = _fold(stacked, latent, leaks)
        shares = [
            replace(t, value=_average(t.value, latent).detach())
            if _carries(t.value, latent.draw.axis)
            else t
            for t in parts
        ]
    if cost is not None:
        handed = _per_datum(cost, latent, tree.run.layout)
        terms = terms + _owed(latent, handed)
        costs.append((latent, handed.detach()))
    return terms, shares


def _stack(branches: list[list[Term]], latent: LatentSite) -> list[Term]:
    """Terms of several copies as terms on the private dim; what comes before the site, once.

    A term that one copy lacks (a branch not taken) is zero there.
    """
    axis = latent.draw.axis or 0
    merged = [t for t in branches[0] if not _downstream(t, latent)]
    values: dict[tuple[str, Role, Plates], dict[int, Term]] = {}
    for copy, branch in enumerate(branches):
        for term in branch:
            if _downstream(term, latent):
                slot = values.setdefault((term.name, term.role, term.plates), {})
                if copy in slot:
                    term = replace(term, value=term.value + slot[copy].value)
                slot[copy] = term
    for slot in values.values():
        some = next(iter(slot.values()))
        zero = torch.zeros_like(some.value)
        rows = [slot[c].value if c in slot else zero for c in range(len(branches))]
        # later sites left their averaged private dim behind, of size 1 at this very place
        rows = [row.squeeze(axis) if row.dim() >= -axis else row for row in rows]
        rows = list(torch.broadcast_tensors(*rows))
        ones = (1,) * (-axis - 1 - rows[0].dim())
        value = torch.stack([row.reshape(*ones, *row.shape) for row in rows])
        merged.append(replace(some, value=value))
    return merged


def total(terms: Iterable[Term], layout: Layout) -> Tensor:
    """The sum over plates of the mean over particles of folded terms."""
    result: Tensor | None = None
    for term in terms:
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
        if _carries(value, latent.draw.axis):
            value = _average(value, latent).detach()
    return total([replace(term, value=value)], run.layout)


def _order_cost(
    terms: list[Term],
    latent: LatentSite,
    leaks: list[_Leak],
    weighted: Iterable[LatentSite] = (),
) -> Tensor | None:
    """The downstream cost by execution order, in the plates of the site."""
    return _cost([t for t in terms if _downstream(t, latent)], latent, leaks, weighted)


@final
class _Downstream:
    """`_order_cost`, detached, without leaks or copies, of latents last to first.

    What is downstream of a site is downstream of every earlier one, so each term is added once, to
    a running sum for its plates; adding up afresh would take the square of the number of sites.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        # surrogates have value zero, and nobody differentiates these sums
        valued = [t for t in terms if t.role != "surrogate"]
        self._model = sorted((t for t in valued if t.in_model), key=_position)
        self._guide = sorted((t for t in valued if not t.in_model), key=_position)
        self._sums: dict[Plates, Tensor] = {}

    def cost(self, latent: LatentSite) -> Tensor | None:
        """The downstream cost of a site that is not later than the one before."""
        self._take(self._model, latent.first_in_model)
        self._take(self._guide, latent.order)
        cost: Tensor | None = None
        for plates, summed in self._sums.items():
            part = _onto_plates(summed, plates, latent.plates)
            cost = part if cost is None else cost + part
        return cost

    def _take(self, waiting: list[Term], first: float) -> None:
        while waiting and _position(waiting[-1]) >= first:
            term = waiting.pop()
            value, summed = term.value.detach(), self._sums.get(term.plates)
            self._sums[term.plates] = value if summed is None else summed + value


def _downstream(term: Term, latent: LatentSite) -> bool:
    """Whether a term can depend on a site that has no private dim."""
    return _position(term) >= (latent.first_in_model if term.in_model else latent.order)


def _position(term: Term) -> int:
    """Where a term stands in its program, as seen by the sites that it may depend on.

    A KL is downstream of earlier sites only: the pair's own two terms are integrated out, and an
    earlier site's KL cannot depend on a later one, the condition under which it was taken.
    """
    return term.order - 1 if term.role == "kl" else term.order


def _fold(
    terms: list[Term],
    latent: LatentSite,
    leaks: list[_Leak],
    weighted: Iterable[LatentSite] = (),
) -> tuple[list[Term], Tensor | None]:
    """Average the terms on the site's private dim over its copies; also the cost of each copy."""
    dependent, kept = [], []
    for term in terms:
        (dependent if _carries(term.value, latent.draw.axis) else kept).append(term)
    for term in dependent:
        shared = term.plates & latent.plates
        if shared != latent.plates and not latent.estimator.joint_copies:
            raise ProgramError(_entangled(term, latent))
        value = _average(_onto_plates(term.value, term.plates, shared), latent)
        kept.append(replace(term, value=value, plates=shared))
    return kept, _cost(dependent, latent, leaks, weighted)


def _cost(
    terms: list[Term], latent: LatentSite, leaks: list[_Leak], weighted: Iterable[LatentSite]
) -> Tensor | None:
    """The sum of terms in the plates of the site, attached only if the estimator asks for it.

    Before a plate is summed, sites in it whose copies have weights of their own for each element,
    and on which this site does not depend, are averaged: afterwards only the weights of the
    element that is charged would be at hand.
    """
    cost: Tensor | None = None
    for term in terms:
        value = term.value if latent.estimator.differentiates_cost else term.value.detach()
        apart = latent.plates - {leak.plate for leak in leaks if leak.reaches(term)}
        for other in weighted:
            if other.plates & (term.plates - apart) and _averages_for(other, latent, value):
                value = _average(value, other)
                value = value if latent.estimator.differentiates_cost else value.detach()
        part = _onto_plates(value, term.plates, apart)
        cost = part if cost is None else cost + part
    return cost


def _averages_for(other: LatentSite, latent: LatentSite, value: Tensor) -> bool:
    """Whether a value still stands at the copies of another site, and the site itself does not."""
    axis = other.draw.axis
    open_copies = other is not latent and _carries(value, axis)
    return open_copies and axis is not None and not _depends(latent, axis)


def _per_datum(cost: Tensor, latent: LatentSite, layout: Layout) -> Cost:
    if _subsampled(latent):
        cost = cost / latent.plate_scale
    if layout.num_particles == 1 or latent.draw.axis is not None:
        return Cost(cost)
    return Cost(cost, mean_of_others(cost, layout.particle_dim))


def _subsampled(latent: LatentSite) -> bool:
    return isinstance(latent.plate_scale, Tensor) or latent.plate_scale != 1.0


def _owed(latent: LatentSite, cost: Cost) -> list[Term]:
    """The estimator's surrogate as a term, computed per datum and scaled back."""
    owed = latent.estimator.surrogate(latent.draw, cost)
    if owed is None:
        return []
    value = owed * latent.plate_scale if _subsampled(latent) else owed
    return [Term(latent.name, "surrogate", value, latent.plates, latent.order)]


def _carries(value: Tensor, axis: int | None) -> bool:
    """Whether a tensor has copies on a private dim."""
    return axis is not None and value.dim() >= -axis and value.shape[axis] > 1


def _average(value: Tensor, latent: LatentSite) -> Tensor:
    """The weighted mean over the site's copies, its dim kept with size 1."""
    axis = latent.draw.axis
    if axis is None:
        return value
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


def _entangled(term: Term, latent: LatentSite) -> str:
    names = sorted(name for name, _ in latent.plates - term.plates)
    return (
        f"site {latent.name!r} is evaluated for all elements of plate {names[0]!r} in parallel by "
        f"{latent.estimator!r}, but site {term.name!r} outside that plate comes after it and may "
        "depend on it: it would see all elements at the same copy only. Put that site into the "
        "plate or before this one, or use am.ScoreFunction(am.LeaveOneOut()) here, whose copies "
        "are joint draws"
    )
