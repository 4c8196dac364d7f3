"""From the terms of a run to the bound: latents are folded last to first, in guide order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amortized.estimators.base import Cost
from amortized.programs.records import LatentSite, Plates, Role, Run, Term
from amortized.programs.sequential import Node, Tree
from amortized.surrogate.costs import (
    Downstream,
    average,
    carries,
    fold,
    order_cost,
    owed,
    per_datum,
    refuse_entangled,
    scaled,
)
from amortized.surrogate.order import downstream, folding_order, leaks_of
from amortized.surrogate.rows import (
    cost_of_copies,
    on_base,
    ordinary_rows,
    repeated,
    scores_of_relaxed_rows,
)
from amortized.surrogate.totals import total
from amortized.surrogate.weights import EVEN, Weights


@dataclass(frozen=True, eq=False)
class Assembled:
    """The bound of a run and what each site that owes a surrogate was charged.

    ``bound`` is a scalar in nats whose gradient is the estimate. ``costs`` are detached, per datum
    (subsampling divided out), and what estimators learn from. ``parts`` is what model and guide
    maximize, where that is not the same, detached.
    """

    bound: Tensor
    costs: list[tuple[LatentSite, Cost]]
    parts: dict[str, Tensor] = field(default_factory=dict)


def assemble(run: Run, weights: Weights = EVEN) -> Assembled:
    """Fold the latents of a run, last to first, into an additive bound."""
    terms = weights.weighed(run.terms)
    costs: list[tuple[LatentSite, Cost]] = []
    weighted = [s for s in run.latents if s.draw.axis and not s.estimator.joint_copies]
    copies = any(s.draw.axis for s in run.latents)
    running: Downstream | None = None
    for latent in folding_order(run.latents):
        leaks = leaks_of(latent, run.latents, by_shape=latent.span is None)
        if latent.span is not None:
            cost = order_cost(terms, latent, leaks, weighted)
        elif latent.draw.axis is not None:
            terms, cost = fold(terms, latent, leaks, weighted)
        elif copies or leaks or latent.order < 0 or latent.estimator.differentiates_cost:
            # a hand-made draw (order -1) reaches everything, the sites before it do not
            cost = order_cost(terms, latent, leaks, weighted)
        else:
            running = running or Downstream(terms)
            cost = running.cost(latent)
        if cost is not None:
            handed = per_datum(cost, latent, run.layout)
            owes, handed = _owed(latent, handed, run)
            terms += owes
            costs.append((latent, handed.detach()))
    return Assembled(total(terms, run.layout, ordinary_rows(run.latents, run.layout)), costs)


def _owed(latent: LatentSite, cost: Cost, run: Run) -> tuple[list[Term], Cost]:
    """What an estimator owes, on the rows where it is charged; and its cost copy by copy."""
    if latent.span is None:
        owes = owed(latent, cost)
        if run.layout.rows > 1:
            again = (repeated(t.value, latent, run.latents, run.layout) for t in owes)
            owes = [replace(t, value=value) for t, value in zip(owes, again, strict=True)]
        return owes, cost
    found = cost_of_copies(cost, latent.span, run.layout)
    owes = [replace(t, value=on_base(t.value, latent.span)) for t in owed(latent, found)]
    scores = scores_of_relaxed_rows(latent, cost, run.latents)
    return owes + scaled(latent, scores), found


def assemble_trees(trees: list[Tree], weights: Weights = EVEN) -> Assembled:
    """The mean over particles of sequential runs."""
    costs: list[tuple[LatentSite, Cost]] = []
    bounds = [total(_fold_tree(tree, costs, weights), tree.run.layout) for tree in trees]
    return Assembled(torch.stack(bounds).mean(), costs)


def averaged(trees: list[Tree]) -> Run:
    """Sequential runs as one, whose terms are averaged over copies and particles, and detached."""
    first = trees[0]
    nodes = {node.name: node for node in first.nodes()}
    latents = [replace(latent, draw=nodes[latent.name].placed) for latent in first.run.latents]
    terms = [t for tree in trees for t in _averages(tree)]
    return replace(
        first.run,
        terms=[replace(t, value=t.value / len(trees)) for t in terms],
        latents=latents,
        runs=sum(1 for tree in trees for _ in tree.runs()),
    )


def _averages(tree: Tree) -> list[Term]:
    """The terms of a tree, averaged from its leaves over the copies of each latent; detached."""
    if tree.node is None:
        return [replace(t, value=t.value.detach()) for t in tree.run.terms]
    found = [_averages(branch) for branch in tree.branches]
    latent = _latent_at(tree, tree.node)
    if latent.draw.axis is None:
        return found[0]
    terms = []
    for term in _stack(found, latent):
        if carries(term.value, latent.draw.axis):
            refuse_entangled(term, latent)
            term = replace(term, value=average(term.value, latent).detach())
        terms.append(term)
    return terms


def _fold_tree(tree: Tree, costs: list[tuple[LatentSite, Cost]], weights: Weights) -> list[Term]:
    """The terms of a tree, folded from its leaves, with what estimators owe."""
    if tree.node is None:
        return weights.weighed(tree.run.terms)
    folded = [_fold_tree(branch, costs, weights) for branch in tree.branches]
    latent = _latent_at(tree, tree.node)
    leaks = [leak for run in tree.runs() for leak in leaks_of(latent, run.latents, by_shape=False)]
    if latent.draw.axis is None:
        terms = folded[0]
        cost = None if latent.estimator.attached else order_cost(terms, latent, leaks)
    else:
        terms, cost = fold(_stack(folded, latent), latent, leaks)
    if cost is not None:
        handed = per_datum(cost, latent, tree.run.layout)
        terms = terms + owed(latent, handed)
        costs.append((latent, handed.detach()))
    return terms


def _latent_at(tree: Tree, node: Node) -> LatentSite:
    """The latent of a tree's node, as it stands over all paths."""
    latent = tree.latent(node.name)
    return replace(latent, draw=node.placed, first_in_model=tree.first_in_model(node.name))


def _stack(branches: list[list[Term]], latent: LatentSite) -> list[Term]:
    """Terms of several copies as terms on the private dim; what comes before the site, once.

    A term that one copy lacks (a branch not taken) is zero there.
    """
    axis = latent.draw.axis or 0
    merged = [t for t in branches[0] if not downstream(t, latent)]
    values: dict[tuple[str, Role, Plates], dict[int, Term]] = {}
    for copy, branch in enumerate(branches):
        for term in branch:
            if downstream(term, latent):
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
