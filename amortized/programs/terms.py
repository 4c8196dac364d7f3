"""From executed sample statements to the terms of the objective."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import constraints

from amortized.errors import ProgramError
from amortized.estimators.base import base_of, wrappers_of
from amortized.programs.divergence import analytic_kl, is_masked
from amortized.programs.records import LatentSite, Layout, Plates, SiteRecord, Term


def build_terms(
    guide: dict[str, SiteRecord],
    model: dict[str, SiteRecord],
    layout: Layout,
    closed_form: bool,
) -> tuple[list[Term], dict[str, str]]:
    """All terms of one run, and per latent how its KL is computed.

    With ``closed_form`` the pair log p(z) - log q(z) becomes -KL where theory allows it.
    """
    terms: list[Term] = []
    notes: dict[str, str] = {}
    replaced: set[str] = set()
    for order, record in enumerate(guide.values()):
        if closed_form and record.name in model:
            value, note = _kl_value(record, guide, model)
            notes[record.name] = note
            if value is not None:
                replaced.add(record.name)
                terms.append(_checked(Term(record.name, "kl", value, record.plates, order), layout))
                continue
        terms.append(_checked(_guide_term(record, order), layout))
    for order, record in enumerate(model.values()):
        if record.name not in replaced:
            terms.append(_checked(_model_term(record, order), layout))
    return terms, notes


def latents_of(guide: dict[str, SiteRecord], model: dict[str, SiteRecord]) -> list[LatentSite]:
    """The guide's latents in order, each with the first model site that it can reach."""
    position = {name: order for order, name in enumerate(model)}
    first = math.inf
    found = []
    for order, record in reversed(list(enumerate(guide.values()))):
        first = min(first, position.get(record.name, math.inf))
        if record.draw is None or record.estimator is None:
            continue
        # a hand-made draw (a factor) may have reached everything before it was declared
        place, reach = (-1, 0) if record.observed else (order, first)
        found.append(
            LatentSite(
                record.draw, record.estimator, record.plates, record.plate_scale, place, reach
            )
        )
    return found[::-1]


def _guide_term(record: SiteRecord, order: int) -> Term:
    if record.draw is None or is_masked(record.fn):
        log_q = _log_prob(record, record.value)
    else:
        log_q = record.draw.log_prob
    if record.estimator is not None and not record.estimator.attached:
        log_q = log_q.detach()
    value = scale_and_mask(-log_q, record.scale, record.mask)
    return Term(record.name, "guide", value, record.plates, order)


def _model_term(record: SiteRecord, order: int) -> Term:
    value = record.value
    if record.observed:
        for law, mask in masks_of(record.fn, record.mask):
            if isinstance(mask, Tensor):
                value = fill_hidden(law, value, mask)
    log_p = _log_prob(record, value)
    role = "likelihood" if record.observed else "prior"
    return Term(
        record.name, role, scale_and_mask(log_p, record.scale, record.mask), record.plates, order
    )


def masks_of(fn: Any, mask: Any) -> list[tuple[Any, Any]]:
    """The masks over a statement, each with the distribution whose batch shape it has.

    A handler's ``mask`` comes first, then those inside the distribution, also inside ``to_event``.
    """
    masked = [w for w in wrappers_of(fn) if isinstance(w, MaskedDistribution)]
    return [(fn, mask), *((w, w._mask) for w in masked)]


def _log_prob(record: SiteRecord, value: Tensor) -> Tensor:
    try:
        return record.fn.log_prob(value)
    except ValueError as error:
        family = type(base_of(record.fn)).__name__
        reason = " ".join(str(error).split())
        raise ProgramError(
            f"site {record.name!r}: {family} of batch shape {tuple(record.fn.batch_shape)} and "
            f"event shape {tuple(record.fn.event_shape)} refuses a value of shape "
            f"{tuple(value.shape)}: {reason[:300]}. Look for NaN, values outside the support, or "
            "a shape that plates and .to_event do not describe"
        ) from error


def fill_hidden(fn: Any, value: Tensor, mask: Tensor) -> Tensor:
    """Observations with masked entries replaced by a value inside the support.

    A NaN behind a mask contributes 0 to the value but NaN to gradients (0 * NaN): what is hidden
    must be harmless before ``log_prob`` sees it.
    """
    inside = _inside(fn.support, value)
    if inside is None:
        return value
    visible = mask.reshape(mask.shape + (1,) * len(fn.event_shape))
    return torch.where(visible, value, inside)


def _inside(support: Any, value: Tensor) -> Tensor | None:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    if support in (constraints.real, constraints.real_vector, constraints.boolean):
        return zero
    if support is constraints.nonnegative_integer:
        return zero
    if isinstance(support, constraints.integer_interval):
        return zero + support.lower_bound
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        return zero + support.lower_bound + 1
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return zero + (support.lower_bound + support.upper_bound) / 2
    if support in (constraints.simplex, constraints.one_hot):
        first = torch.zeros_like(value)
        if support is constraints.one_hot:
            first[..., 0] = 1
            return first
        return first + 1 / value.shape[-1]
    return None


def _kl_value(
    record: SiteRecord, guide: dict[str, SiteRecord], model: dict[str, SiteRecord]
) -> tuple[Tensor | None, str]:
    """-KL(q || p) of a site, scaled and masked, or why it is sampled instead."""
    blocker = _late_parent(record.name, list(guide), list(model))
    if blocker is not None:
        return None, f"sampled: its prior may depend on {blocker!r}, drawn later in the guide"
    prior = model[record.name]
    if prior.plates != record.plates:
        return None, "sampled: model and guide declare different plates"
    return analytic_kl(record, prior)


def _late_parent(name: str, guide: list[str], model: list[str]) -> str | None:
    """A latent before ``name`` in the model that comes after it in the guide, if any."""
    later = set(guide[guide.index(name) + 1 :])
    return next((m for m in model[: model.index(name)] if m in later), None)


def _checked(term: Term, layout: Layout) -> Term:
    """The term, if every dim of size > 1 is a plate, the particles or a private axis."""
    shape = term.value.shape
    declared = {dim for _, dim in term.plates}
    for place in range(len(shape)):
        dim = place - len(shape)
        if shape[place] == 1 or dim in declared:
            continue
        if dim == layout.particle_dim and shape[place] == layout.num_particles:
            continue
        if dim < layout.particle_dim and dim in layout.axes.values():
            continue
        raise ProgramError(_undeclared(term, shape[place], dim, layout))
    return term


def _undeclared(term: Term, size: int, dim: int, layout: Layout) -> str:
    found = (
        f"site {term.name!r} of the {term.side}: its log-probability has shape "
        f"{tuple(term.value.shape)}, with size {size} at dim {dim}, but the plates around it are "
        f"{_plate_names(term.plates)}"
    )
    if size == layout.num_particles or layout.axes:
        return (
            f"{found}; a reduction that drops a plate dim, such as z.mean(-1), shifts copies and "
            "particles onto it: keep the dim, z.mean(-1, keepdim=True). If the dim is a batch "
            "dim of the program, declare it with pyro.plate(...) or .to_event(1)"
        )
    return (
        f"{found}; a batch dim must be declared: put the statement inside pyro.plate(...), or make "
        "the dim part of the event with .to_event(1)"
    )


def _plate_names(plates: Plates) -> str:
    named = ", ".join(f"{name!r} at {dim}" for name, dim in sorted(plates, key=lambda p: p[1]))
    return named or "none"
