"""From executed sample statements to the terms of the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints

from amortized.errors import EstimatorError, ProgramError
from amortized.estimators.base import Draw, Estimator, base_of, wrappers_of
from amortized.programs.divergence import analytic_kl, is_masked
from amortized.programs.elimination import is_factor, sums_inside
from amortized.programs.placement import unmasked
from amortized.programs.records import LatentSite, Layout, Plates, SiteRecord, Term
from amortized.programs.rows import hard_log_q


def build_terms(
    guide: dict[str, SiteRecord],
    model: dict[str, SiteRecord],
    layout: Layout,
    closed_form: bool,
    direct: Mapping[str, Tensor],
) -> tuple[list[Term], dict[str, str]]:
    """All terms of one run, and per latent how its KL is computed.

    What depends on summed-out sites of the model is a ``factor``, for `eliminated`.

    Args:
        guide: the guide's statements.
        model: the model's.
        layout: where axes lie.
        closed_form: the pair log p(z) - log q(z) becomes -KL where theory allows it.
        direct: log q at constant values, of the sites whose direct gradient is taken out.
    """
    terms: list[Term] = []
    notes: dict[str, str] = {}
    replaced: set[str] = set()
    for order, record in enumerate(guide.values()):
        needed = record.estimator is not None and record.estimator.kl == "analytic"
        if (closed_form or needed) and record.name in model:
            value, note = _kl_value(record, guide, model)
            notes[record.name] = note
            if value is not None:
                replaced.add(record.name)
                terms.append(_checked(Term(record.name, "kl", value, record.plates, order), layout))
                continue
            if needed:
                raise EstimatorError(_no_closed_form(record, note))
        frozen = record.estimator is not None and record.estimator.frozen
        known = direct.get(record.name) if frozen else None
        terms.append(_checked(_guide_term(record, order, known), layout))
    drawn_by = {name: r.estimator for name, r in guide.items() if r.estimator is not None}
    draws = {name: r.draw for name, r in guide.items() if r.draw is not None}
    terms += [t for t in model_terms(model, layout, drawn_by, draws) if t.name not in replaced]
    return terms, notes


def model_terms(
    model: dict[str, SiteRecord],
    layout: Layout,
    drawn_by: Mapping[str, Estimator],
    draws: Mapping[str, Draw] | None = None,
) -> list[Term]:
    """log p of every statement of the model, at values that these estimators drew.

    ``draws`` has what they remember, where the values are their own.
    """
    drawn = draws or {}
    return [
        _checked(_model_term(r, order, drawn_by.get(r.name), drawn.get(r.name)), layout, r)
        for order, r in enumerate(model.values())
    ]


def _no_closed_form(record: SiteRecord, note: str) -> str:
    return (
        f"site {record.name!r}: {record.estimator!r} takes the site's KL in closed form, and here "
        f"it would have to be {note}; choose another of its forms, or another estimator"
    )


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
                record.draw,
                record.estimator,
                record.plates,
                record.plate_scale,
                place,
                reach,
                record.span,
                record.hard_log_q,
            )
        )
    return found[::-1]


def _guide_term(record: SiteRecord, order: int, direct: Tensor | None = None) -> Term:
    log_q, estimator = log_q_of(record), record.estimator
    if estimator is not None and not (estimator.attached or estimator.keeps_log_q):
        log_q = log_q.detach()
    if direct is not None:
        log_q = log_q - (direct - direct.detach())
    value = scale_and_mask(-log_q, record.scale, record.mask)
    return Term(record.name, "guide", value, record.plates, order)


def log_q_of(record: SiteRecord) -> Tensor:
    """log q of a guide's statement, its masks applied and not its handlers'."""
    draw, estimator, fn = record.draw, record.estimator, record.fn
    if draw is None or estimator is None:
        return _log_prob(record, record.value, None)
    masks = []
    while isinstance(fn, MaskedDistribution):
        masks.append(fn._mask)
        fn = fn.base_dist
    if is_masked(fn):
        if draw.ordinary is not None or record.span is not None:
            raise EstimatorError(
                f"site {record.name!r}: {estimator!r} relaxes values of a distribution that masks "
                "a part of its event; put the mask around the statement, poutine.mask(mask=...)"
            )
        return _log_prob(record, record.value, estimator)
    if record.span is None:
        log_q = _own_log_q(record, estimator, draw)
    else:
        law = draw.site.law
        record.hard_log_q, log_q = hard_log_q(law, record.value, draw, record.span)
        log_q = log_q.detach()
    for mask in masks:
        log_q = scale_and_mask(log_q, 1.0, mask)
    return log_q


def _own_log_q(record: SiteRecord, estimator: Estimator, draw: Draw) -> Tensor:
    try:
        return estimator.log_q(draw)
    except (KeyError, NotImplementedError) as error:
        _refuse_without_inverse(record, error)
        raise


def _refuse_without_inverse(record: SiteRecord, error: Exception) -> None:
    """Some transforms know the inverse of nothing but the value that they have just made."""
    law = base_of(record.fn)
    if isinstance(law, TransformedDistribution):
        names = ", ".join(type(transform).__name__ for transform in law.transforms)
        reason = " ".join(str(error).split()).strip("\"'")
        raise EstimatorError(
            f"site {record.name!r}: its density is asked at a value that this run of its "
            f"distribution did not make, and the transform ({names}) cannot be inverted: "
            f"{reason[:200]}. In a guide use am.Pathwise(), which needs no inverse; otherwise a "
            "flow that has one, such as pyro's affine_coupling or spline_coupling"
        ) from error


def _model_term(
    record: SiteRecord, order: int, drawn_by: Estimator | None, draw: Draw | None
) -> Term:
    value = record.value
    if record.observed:
        for law, mask in masks_of(record.fn, record.mask):
            if isinstance(mask, Tensor):
                value = fill_hidden(law, value, mask)
    log_p = _log_prob(record, value, drawn_by, draw)
    role, scale, mask = "likelihood" if record.observed else "prior", record.scale, record.mask
    if is_factor(record, log_p):
        # a mask takes evidence away; the law of what is summed out stays a law, and sums to one
        role, scale, mask = "factor", 1.0, None if record.summed else mask
    return Term(record.name, role, scale_and_mask(log_p, scale, mask), record.plates, order)


def masks_of(fn: Any, mask: Any) -> list[tuple[Any, Any]]:
    """The masks over a statement, each with the distribution whose batch shape it has.

    A handler's ``mask`` comes first, then those inside the distribution, also inside ``to_event``.
    """
    masked = [w for w in wrappers_of(fn) if isinstance(w, MaskedDistribution)]
    return [(fn, mask), *((w, w._mask) for w in masked)]


def _log_prob(
    record: SiteRecord, value: Tensor, estimator: Estimator | None, draw: Draw | None = None
) -> Tensor:
    """The log-density at a value, which its estimator may have relaxed and know more of."""
    try:
        if record.summed:
            return unmasked(record.fn).log_prob(value)
        if estimator is None or record.observed:
            return record.fn.log_prob(value)
        if draw is not None and draw.value is value:
            return estimator.log_p(record.fn, draw)
        return estimator.density(record.fn, value)
    except EstimatorError as error:
        raise EstimatorError(f"site {record.name!r}: {error}") from error
    except (KeyError, NotImplementedError) as error:
        _refuse_without_inverse(record, error)
        raise
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
    inside = sums_inside(prior)
    if inside:
        return None, f"sampled: its prior is a sum over {inside[0]!r} of the model"
    if prior.plates != record.plates:
        return None, "sampled: model and guide declare different plates"
    return analytic_kl(record, prior)


def _late_parent(name: str, guide: list[str], model: list[str]) -> str | None:
    """A latent before ``name`` in the model that comes after it in the guide, if any."""
    later = set(guide[guide.index(name) + 1 :])
    return next((m for m in model[: model.index(name)] if m in later), None)


def _checked(term: Term, layout: Layout, record: SiteRecord | None = None) -> Term:
    """The term, if every dim of size > 1 is a plate, the particles, a private axis or summed over.

    ``record`` says which dims are summed over.
    """
    shape = term.value.shape
    declared = {dim for _, dim in term.plates}
    declared |= set() if record is None else record.open_dims.keys()
    for place in range(len(shape)):
        dim = place - len(shape)
        if shape[place] == 1 or dim in declared:
            continue
        if dim == layout.particle_dim and shape[place] == layout.num_particles:
            continue
        if dim < layout.particle_dim and dim in layout.axes.values():
            continue
        if dim == layout.row_dim and shape[place] == layout.rows:
            continue
        if record is not None and dim <= layout.free_dim:
            raise ProgramError(_out_of_reach(term, shape[place], dim, record))
        raise ProgramError(_undeclared(term, shape[place], dim, layout, record))
    return term


def _out_of_reach(term: Term, size: int, dim: int, record: SiteRecord) -> str:
    reach = ", ".join(f"{own!r} at dim {at}" for at, own in record.open_dims.items()) or "none"
    return (
        f"site {term.name!r} of the model: its log-probability has size {size} at dim {dim}, left "
        "of all plates, where only values of summed-out sites may lie that are in its reach "
        f"({reach}); unsqueeze(-1) and sums over plates shift dims, keep them in place; and inside "
        "pyro.markov a statement reaches one step back, or as many as history= says"
    )


def _undeclared(term: Term, size: int, dim: int, layout: Layout, record: SiteRecord | None) -> str:
    found = (
        f"site {term.name!r} of the {term.side}: its log-probability has shape "
        f"{tuple(term.value.shape)}, with size {size} at dim {dim}, but the plates around it are "
        f"{_plate_names(term.plates)}"
    )
    summed = record is not None and bool(record.open_dims)
    if size == layout.num_particles or layout.axes or layout.rows > 1 or summed:
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
