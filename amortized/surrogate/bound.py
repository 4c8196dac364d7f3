"""Bounds that are no sum of terms: each site is charged through the bound itself.

For a site that is not pathwise, in particle k,

    grad E g = E sum_k A_k grad log q(z_k),    A_k = g - dg / d log w_k,

with its own log q detached inside the bound. Copies of a site replace row k of the table of
log-weights, one row at a time; the other particles, and the other sites, stay at their base.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Categorical

from amortized.errors import EstimatorError
from amortized.estimators.base import Cost, Noise, beside_weights
from amortized.estimators.baselines import mean_of_others
from amortized.estimators.elements import finite
from amortized.objectives.base import Objective
from amortized.programs.divergence import is_masked
from amortized.programs.records import LatentSite, Layout, Plates, Run, Term
from amortized.surrogate.assemble import Assembled
from amortized.surrogate.costs import carries, padded
from amortized.surrogate.outer import shared_plates
from amortized.surrogate.weights import Weight, Weights


def assemble_bound(
    run: Run,
    objective: Objective,
    noise: Noise,
    scale: tuple[Tensor | float, bool],
    kl_weight: Weight = 1.0,
) -> Assembled:
    """The bound per element of the shared plates, summed, with every site's surrogate.

    Args:
        run: on ``objective.num_particles`` particles.
        objective: the bound.
        noise: where the indices of summed-out sites at their base come from.
        scale: what stands outside the logarithm, and whether that is every term's scale, of
            `OuterScale`.
        kl_weight: how often the terms of latents count.

    Raises:
        EstimatorError: an estimator that needs a sum of terms.
        ProgramError: a subsampled plate that not all sites share.
    """
    shared = shared_plates(run)
    for latent in run.latents:
        _refuse_additive(latent, objective)
        _refuse_partly_masked(latent, run, objective)
        _refuse_entangled(latent, shared, objective)
    table = _Table(run, noise, scale, kl_weight)
    log_w = table.rows(None)[0]
    total = (objective.bound(log_w) * table.factor).sum()
    costs: list[tuple[LatentSite, Cost]] = []
    for latent in reversed(run.latents):
        if latent.estimator.attached and latent.draw.axis is None:
            continue  # the bound itself is differentiated
        cost = _cost(table, latent, objective, log_w.detach())
        costs.append((latent, cost.detach()))
        owed = _owed(latent, cost)
        if owed is not None:
            owed = table.at_base(owed, latent)
            total = total + (owed * table.factor).sum()
    doubly = _doubly_reparameterized(table, run, objective, log_w.detach())
    return Assembled(total if doubly is None else total + doubly, costs)


def _doubly_reparameterized(
    table: _Table, run: Run, objective: Objective, log_w: Tensor
) -> Tensor | None:
    """``sum_s sg((g' - g'') d log w / d z_s) z_s``, of value zero, with phi frozen in log w.

    The model saw these sites as constants, so the bound itself gives the gradient of theta alone.
    """
    if not run.leaves:
        return None
    first, second = slopes(objective, log_w)
    weights = (first - table.counted_alike(run) * second) * table.factor
    frozen = (table.log_weights_at_leaves(run) * weights).sum()
    names = list(run.leaves)
    found = torch.autograd.grad(
        frozen,
        [run.leaves[name] for name in names],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    total: Tensor | None = None
    for name, slope in zip(names, found, strict=True):
        value = run.guide[name].value
        owed = (slope * (value - value.detach())).sum()
        total = owed if total is None else total + owed
    return total


def _refuse_additive(latent: LatentSite, objective: Objective) -> None:
    estimator, why = latent.estimator, beside_weights(latent.estimator)
    if why is None:
        return
    raise EstimatorError(
        f"site {latent.name!r}: {estimator!r} under {objective!r} {why}; use am.ELBO(), or "
        "am.Pathwise(), am.DisARM() or am.ScoreFunction(am.LeaveOneOut()) here"
    )


def _refuse_partly_masked(latent: LatentSite, run: Run, objective: Objective) -> None:
    """A mask inside an event: log q counts once for some elements and not for others."""
    fn = run.guide[latent.name].fn
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    if is_masked(fn):
        raise EstimatorError(
            f"site {latent.name!r} masks a part of its event, which {objective!r} does not serve "
            "in this version; put the mask around the statement, poutine.mask(mask=...)"
        )


def _refuse_entangled(latent: LatentSite, shared: Plates, objective: Objective) -> None:
    """All elements of a plate stand at the same copy: weights that add them up are no weights."""
    inner = sorted(name for name, _ in latent.plates - shared)
    if latent.draw.axis is None or latent.estimator.joint_copies or not inner:
        return
    raise EstimatorError(
        f"site {latent.name!r} is evaluated for all elements of plate {inner[0]!r} in parallel by "
        f"{latent.estimator!r}, and {objective!r} has one weight for the whole plate, since not "
        "every latent and observation is in it; use am.ScoreFunction(am.LeaveOneOut()) or "
        "am.DisARM() here, whose copies are joint draws, or am.ELBO()"
    )


class _Table:
    """The log-weights of a run, as functions of one site's copies."""

    def __init__(
        self,
        run: Run,
        noise: Noise,
        scale: tuple[Tensor | float, bool],
        kl_weight: Weight,
    ) -> None:
        self.layout, self.latents = run.layout, run.latents
        self.shared = shared_plates(run)
        self.factor, self.common = scale
        self.guide = run.guide
        summed = {
            s.name
            for s in run.latents
            if s.name in run.leaves or (s.estimator.attached and s.draw.axis is not None)
        }
        self.terms = [
            reduced(_held(term, summed), self.shared, self.factor)
            for term in Weights(kl_weight).weighed(run.terms)
        ]
        self.kl_weight = kl_weight
        self.bases: dict[str, Tensor | int] = {}
        for latent in run.latents:
            if latent.draw.axis is not None:
                self.bases[latent.name] = self._base(latent, noise)

    def rows(self, free: LatentSite | None) -> Tensor:
        """Log-weights at the copies of a site, all others at their base: ``[C, K, *shared]``."""
        return self._added(self.terms, free)

    def log_weights_at_leaves(self, run: Run) -> Tensor:
        """Log-weights as a function of the constants that the model saw: ``[K, *shared]``."""
        terms = []
        for term in run.terms:
            if term.role == "guide" and term.name in run.direct:
                record = run.guide[term.name]
                value = scale_and_mask(-run.direct[term.name], record.scale, record.mask)
                term = replace(term, value=value)
            terms.append(term)
        at_leaves = [
            reduced(term, self.shared, self.factor)
            for term in Weights(self.kl_weight).weighed(terms)
        ]
        return self._added(at_leaves, None)[0]

    def counted(self, latent: LatentSite) -> Tensor | float:
        """How often the site's own log q is in its log-weight: masks, scales, warm-up; detached."""
        record = self.guide[latent.name]
        share = self.kl_weight
        if not self.common:
            share = record.scale / self.factor * share
        fn, masks = record.fn, [record.mask]
        while isinstance(fn, MaskedDistribution):
            masks.append(fn._mask)
            fn = fn.base_dist
        for mask in masks:
            if mask is not None:
                share = share * torch.as_tensor(mask).to(latent.draw.log_prob)
        return share

    def counted_alike(self, run: Run) -> Tensor | float:
        """`counted` of the doubly reparameterized sites, which has to be one number.

        Raises:
            EstimatorError: masks or scales weigh their log q differently.
        """
        for latent in self.latents:
            record = run.guide[latent.name]
            masked = record.mask is not None or is_masked(record.fn)
            if latent.name in run.leaves and (masked or not self.common):
                raise EstimatorError(
                    f"site {latent.name!r}: {latent.estimator!r} under a bound of several weights "
                    "needs its log q to count once, and a mask or scale changes that; use "
                    "am.Pathwise() here, or am.ELBO()"
                )
        return self.kl_weight

    def _added(self, terms: list[Tensor], free: LatentSite | None) -> Tensor:
        total: Tensor | None = None
        for value in terms:
            value = self.at_base(value, free)
            total = value if total is None else total + value
        total = torch.zeros(()) if total is None else total
        axis = None if free is None else free.draw.axis
        depth = self.layout.nesting + 1
        count = 1 if axis is None or free is None else free.draw.copies
        total = padded(total, -depth)
        if axis is not None and carries(total, axis):
            total = total.movedim(axis, 0)
        tail = total.shape[total.dim() - depth :]
        total = total.reshape(-1, *tail)
        return total.expand(count, self.layout.num_particles, *tail[1:])

    def at_base(self, value: Tensor, free: LatentSite | None) -> Tensor:
        """A tensor with every private dim but one at the base copies, later sites first."""
        for latent in reversed(self.latents):
            axis = latent.draw.axis
            if axis is None or latent is free or not carries(value, axis):
                continue
            base = self.bases[latent.name]
            if isinstance(base, int):
                value = value.narrow(axis, base, 1)
            else:
                value = _gathered(value, axis, base)
        return value

    def _base(self, latent: LatentSite, noise: Noise) -> Tensor | int:
        """The copy that is an ordinary draw; an index for each element where weights say which."""
        weights = latent.estimator.weights(latent.draw)
        axis = latent.draw.axis
        if not latent.estimator.weighted_base or weights is None or axis is None:
            return 0
        layout = self.layout
        wide = list(weights.shape)
        wide[layout.particle_dim] = layout.num_particles
        with torch.no_grad():
            probs = weights.expand(wide).movedim(axis, -1)
            index = noise.sample(Categorical(probs=probs), site=latent.name)
        return index.unsqueeze(-1).movedim(-1, axis)


def _gathered(value: Tensor, axis: int, index: Tensor) -> Tensor:
    """Entries of a private dim, one for each element of the others."""
    depth = max(value.dim(), index.dim())
    value, index = padded(value, -depth), padded(index, -depth)
    shape = [max(a, b) for a, b in zip(value.shape, index.shape, strict=True)]
    ours, theirs = list(shape), list(shape)
    ours[axis], theirs[axis] = value.shape[axis], 1
    return value.expand(ours).gather(axis, index.expand(theirs))


def _held(term: Term, summed: set[str]) -> Term:
    """Own log q of sites that are summed out is detached, like that of every other discrete one."""
    own = term.role == "guide" and term.name in summed
    return replace(term, value=term.value.detach()) if own else term


def reduced(term: Term, shared: Plates, factor: Tensor | float) -> Tensor:
    """A term per element of the shared plates, without their scale; dims are kept."""
    dims = [dim for _, dim in term.plates - shared if term.value.dim() >= -dim]
    value = term.value / factor if isinstance(factor, Tensor) or factor != 1.0 else term.value
    return value.sum(dims, keepdim=True) if dims else value


def _cost(table: _Table, latent: LatentSite, objective: Objective, base: Tensor) -> Cost:
    """A of every copy and particle, on the dims of the site."""
    counted = table.counted(latent)

    def charged(rows: Tensor) -> Tensor:
        bound, slope = (_placed(t, latent, table.layout) for t in replaced(objective, base, rows))
        return bound - counted * slope

    copies = charged(table.rows(latent).detach())
    if len(base) == 1 or latent.draw.axis is not None:
        return Cost(copies)
    return Cost(copies, charged(mean_of_others(base, -base.dim()).unsqueeze(0)))


def replaced(objective: Objective, base: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """g and dg / d log w_k with row k replaced, one at a time.

    Args:
        objective: what g is.
        base: log-weights ``[K, *shared]``.
        rows: what replaces row k, ``[C, K, *shared]``.

    Returns:
        each of shape ``[C, K, *shared]``, detached.
    """
    with torch.enable_grad():
        rows = rows.detach().clone().requires_grad_()
        bound = objective.bound(_swapped(base, rows))
        (slope,) = torch.autograd.grad(bound.sum(), rows)
    return bound.detach(), slope


def slopes(objective: Objective, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """dg / d log w_k and its own derivative in log w_k, shape ``[K, *shared]``, detached."""
    known = objective.slopes(log_w.detach())
    return by_rows(objective, log_w) if known is None else known


def by_rows(objective: Objective, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The same of any bound, one row moved at a time."""
    with torch.enable_grad():
        rows = log_w.detach().unsqueeze(0).clone().requires_grad_()
        bound = objective.bound(_swapped(log_w, rows))
        (first,) = torch.autograd.grad(bound.sum(), rows, create_graph=True)
        second = torch.zeros_like(first)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), rows)
    return first.detach()[0], second.detach()[0]


def _swapped(base: Tensor, rows: Tensor) -> Tensor:
    """The weight of particle j where row k is replaced: ``[j, c, k, *shared]``."""
    count = len(base)
    eye = torch.eye(count, dtype=torch.bool, device=base.device)
    eye = eye.reshape(count, 1, count, *(1,) * (base.dim() - 1))
    return torch.where(eye, rows.unsqueeze(0), base.detach().unsqueeze(1).unsqueeze(1))


def _placed(found: Tensor, latent: LatentSite, layout: Layout) -> Tensor:
    """From ``[C, K, *shared]`` to the site's private dim."""
    axis = latent.draw.axis
    if axis is None:
        return found.squeeze(0)
    ones = (1,) * (-axis - 1 - (layout.nesting + 1))
    return found.reshape(found.shape[0], *ones, *found.shape[1:])


def _owed(latent: LatentSite, cost: Cost) -> Tensor | None:
    """The estimator's surrogate; of a site that is summed out, its weights times the cost."""
    if not latent.estimator.attached:
        return latent.estimator.surrogate(latent.draw, cost)
    axis, weights = latent.draw.axis, latent.estimator.weights(latent.draw)
    if axis is None or weights is None:
        return None
    return ((weights - weights.detach()) * finite(cost.copies)).sum(axis, keepdim=True)
