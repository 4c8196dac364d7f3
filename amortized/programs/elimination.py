"""From log-probabilities at all values of summed-out sites to terms without them.

The sums are taken by Pyro's variable elimination over plates. Dims of particles, rows and private
axes ride along, as those of sites that a guide enumerates do in ``TraceEnum_ELBO``.
"""

from __future__ import annotations

import string
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from amortized.errors import ProgramError, quoted
from amortized.programs.records import Layout, Plates, SiteRecord, Term

Records = Mapping[str, SiteRecord]


def is_factor(record: SiteRecord, value: Tensor) -> bool:
    """Whether a log-probability has to be summed over values of model sites, its own or others'."""
    parts = [value, *_around(record)]
    return bool(record.summed) or any(
        _carries(part, dim) for dim in record.open_dims for part in parts
    )


def _around(record: SiteRecord) -> list[Tensor]:
    """The mask and the scale of a statement, which may depend on summed-out sites, too."""
    return [part for part in (record.mask, record.scale) if isinstance(part, Tensor)]


def sums_inside(record: SiteRecord) -> list[str]:
    """The summed-out sites that the law of a statement, or its mask or scale, depends on."""
    shapes = [record.fn.batch_shape, *(part.shape for part in _around(record))]
    return [
        own
        for dim, own in record.open_dims.items()
        if own != record.name and any(len(s) >= -dim and s[dim] > 1 for s in shapes)
    ]


def eliminated(
    terms: list[Term], model: Records, layout: Layout, reads: bool
) -> tuple[list[Term], dict[str, str]]:
    """One or two terms for each set of factors that are connected by sums, beside the other terms.

    ``log sum_c p(c) p(z | c) p(x | z, c)`` is split, where it holds latents of the guide, into
    log p(z), a prior, and the rest, log p(x | z): both without c. Also a note for each latent whose
    prior is a sum, by which name it is found.

    Args:
        terms: among them factors: log p of statements, unscaled, with dims of summed-out sites.
        model: the statements.
        layout: where axes lie.
        reads: whether scales that are tensors may be read.

    Raises:
        ProgramError: a site outside a plate depends on one that is summed out in it, scales differ
            or depend on what is summed out, or plates cross.
    """
    factors = [t for t in terms if t.role == "factor"]
    if not factors:
        return terms, {}
    for term in factors:
        _refuse_outside(term, model)
        _refuse_open_scale(model[term.name])
    symbols = _Symbols(factors, model, layout)
    found = [t for t in terms if t.role != "factor"]
    notes: dict[str, str] = {}
    for group in _connected(factors, model):
        scale = _common_scale(group, model, reads)
        _refuse_varying(scale, group, model)
        for term in _terms_of(group, model, symbols):
            found.append(replace(term, value=scale_and_mask(term.value, scale)))
            notes |= {name: _note(name, term) for name in term.latents}
    return found, notes


def _note(latent: str, prior: Term) -> str:
    where = "" if latent == prior.name else f", log p counted at {prior.name!r}"
    return f"sampled: its prior is a sum over {quoted(prior.sums, 3)} of the model{where}"


def _terms_of(group: list[Term], model: Records, symbols: _Symbols) -> list[Term]:
    """The unscaled terms of a connected set of factors."""
    whole = _summed(group, model, symbols)
    if not _latents(group, model):
        return [whole]
    rest = [t for t in group if not model[t.name].observed]
    if len(rest) == len(group):
        return [_prior(whole, group, model)]
    parts = [part for part in _connected(rest, model) if _latents(part, model)]
    priors = [_prior(_summed(part, model, symbols), part, model) for part in parts]
    value = whole.value
    for prior in priors:
        dims = [dim for _, dim in prior.plates - whole.plates if prior.value.dim() >= -dim]
        value = _without(value, prior.value.sum(dims, keepdim=True) if dims else prior.value)
    return [*priors, replace(whole, value=value)]


def _prior(summed: Term, group: list[Term], model: Records) -> Term:
    """A sum as the log-probability of latents of the guide, under the name of the first."""
    latents = _latents(group, model)
    return replace(summed, name=latents[0], role="prior", latents=tuple(latents))


def _latents(group: list[Term], model: Records) -> list[str]:
    """The latents of the guide whose log-probabilities are among the factors."""
    records = (model[t.name] for t in group)
    return [r.name for r in records if not r.observed and not r.summed]


def _without(whole: Tensor, prior: Tensor) -> Tensor:
    """``whole - prior``, and 0 where the latents are impossible: then the prior says it all."""
    return torch.where(prior == -torch.inf, torch.zeros_like(whole), whole - prior)


def _summed(group: list[Term], model: Records, symbols: _Symbols) -> Term:
    """The sum over all values of the sites that a connected set of factors depends on."""
    names = [t.name for t in group if model[t.name].summed]
    kind = _common_type(group)
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for term in group:
        record = model[term.name]
        value = packed.pack(_in_full(term, record).to(kind), symbols.of(record))
        tree.setdefault(symbols.ordinal(term.plates), []).append(value)
    try:
        found = contract_tensor_tree(tree, {symbols.names[name] for name in names})
    except NotImplementedError as error:
        raise ProgramError(_crossing(names, group, model)) from error
    ((_, (value,)),) = found.items()
    return Term(
        name=names[0],
        role="likelihood",
        value=packed.unpack(value, symbols.dims),
        plates=frozenset.intersection(*(t.plates for t in group)),
        order=max(t.order for t in group),
        sums=tuple(names),
    )


@dataclass(init=False)
class _Symbols:
    """Letters for the dims that are kept and for the sites that are summed out."""

    names: dict[str, str]
    plates: dict[tuple[str, int], str]
    dims: dict[str, int]
    kept: dict[int, str]

    def __init__(self, factors: list[Term], model: Records, layout: Layout) -> None:
        summed = [t.name for t in factors if model[t.name].summed]
        plates = sorted({plate for t in factors for plate in t.plates})
        kept = range(layout.free_dim + 1, -layout.nesting)
        letters = map(_letter, range(len(summed) + len(plates) + len(kept)))
        self.kept = dict(zip(kept, letters, strict=False))
        self.plates = dict(zip(plates, letters, strict=False))
        self.names = dict(zip(summed, letters, strict=False))
        self.dims = {letter: dim for dim, letter in self.kept.items()}
        self.dims |= {letter: dim for (_, dim), letter in self.plates.items()}

    def of(self, record: SiteRecord) -> dict[int, str]:
        """The letter of each dim of a statement."""
        found = dict(self.kept)
        found |= {plate[1]: self.plates[plate] for plate in record.plates}
        return found | {dim: self.names[own] for dim, own in record.open_dims.items()}

    def ordinal(self, plates: Plates) -> frozenset[str]:
        """The letters of plates."""
        return frozenset(self.plates[plate] for plate in plates)


def _letter(index: int) -> str:
    """A symbol of an equation; beyond the alphabet any character will do."""
    return string.ascii_letters[index] if index < 52 else chr(index + 140)


def _connected(factors: Iterable[Term], model: Records) -> list[list[Term]]:
    """Factors that share summed-out sites, also by way of others, in the order of the model."""
    groups: list[tuple[list[Term], set[str]]] = []
    for term in factors:
        record = model[term.name]
        sites = {own for dim, own in record.open_dims.items() if _carries(term.value, dim)}
        members, apart = [term], []
        sites |= {term.name} if record.summed else set()
        for group, theirs in groups:
            if theirs & sites:
                members, sites = [*group, *members], sites | theirs
            else:
                apart.append((group, theirs))
        groups = [*apart, (members, sites)]
    return [sorted(members, key=lambda t: t.order) for members, _ in groups]


def _in_full(term: Term, record: SiteRecord) -> Tensor:
    """A factor with the size of each of its plates, for a sum over them."""
    shape = list(term.value.shape)
    for name, dim in term.plates:
        size = record.sizes[name][0]
        shape = [1] * (-dim - len(shape)) + shape
        shape[dim] = size if shape[dim] == 1 else shape[dim]
    return term.value.expand(shape)


def _common_type(group: list[Term]) -> torch.dtype:
    kind = group[0].value.dtype
    for term in group:
        kind = torch.promote_types(kind, term.value.dtype)
    return kind


def _common_scale(group: list[Term], model: Records, reads: bool) -> Any:
    """The scale of every factor; NaN where scales that may not be read differ.

    Raises:
        ProgramError: they differ: a scale inside the logarithm of a sum has no meaning.
    """
    first = model[group[0].name]
    scale = first.scale
    for term in group[1:]:
        other = model[term.name].scale
        if other is scale:
            continue
        if not reads and (isinstance(other, Tensor) or isinstance(scale, Tensor)):
            other = torch.as_tensor(other)
            scale = torch.where(other == scale, other, torch.full_like(other, torch.nan))
        elif not _equal(scale, other):
            raise ProgramError(_scales(first, model[term.name], group, model))
    return scale


def _equal(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) or isinstance(other, Tensor)):
        return one == other
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return one.shape == other.shape and bool((one == other).all())


def _refuse_varying(scale: Any, group: list[Term], model: Records) -> None:
    """Raise for a scale with a number for each element of a plate that is inside the sum."""
    if not isinstance(scale, Tensor):
        return
    outside = {dim for _, dim in frozenset.intersection(*(t.plates for t in group))}
    inside = [dim for dim in range(-scale.dim(), 0) if scale.shape[dim] > 1 and dim not in outside]
    if inside:
        names = ", ".join(repr(t.name) for t in group if model[t.name].summed)
        raise ProgramError(
            f"site {group[0].name!r} of the model has a scale of shape {tuple(scale.shape)}, and "
            f"the sum over {names} joins what lies at dim {inside[0]}: a scale stands outside the "
            f"logarithm of a sum, once for all; give it one number there, or sample {names} in "
            "the guide"
        )


def _refuse_open_scale(record: SiteRecord) -> None:
    """Raise for a scale that depends on what is summed out."""
    if not isinstance(record.scale, Tensor):
        return
    owners = [own for dim, own in record.open_dims.items() if _carries(record.scale, dim)]
    if owners:
        raise ProgramError(
            f"site {record.name!r} of the model has a scale that depends on {quoted(owners, 3)}, "
            "which is summed out, and a scale stands outside the logarithm of a sum, once for all; "
            f"give it a scale that does not depend on it, or sample {quoted(owners, 3)} in the "
            "guide"
        )


def _carries(value: Tensor, dim: int) -> bool:
    return value.dim() >= -dim and value.shape[dim] > 1


def _refuse_outside(term: Term, model: Records) -> None:
    """Raise for a site outside the plate of a summed-out site that it depends on."""
    for dim, own in model[term.name].open_dims.items():
        lacking = sorted(model[own].plates - term.plates) if own in model else []
        if lacking and _carries(term.value, dim):
            raise ProgramError(
                f"site {term.name!r} of the model depends on site {own!r}, which is summed out for "
                f"each element of plate {lacking[0][0]!r}, and lies outside that plate: it would "
                "see all elements at the same value only; put it into the plate, or sample "
                f"{own!r} in the guide"
            )


def _crossing(names: list[str], group: list[Term], model: Records) -> str:
    plates = sorted({name for t in group for name, _ in t.plates})
    return (
        f"sites {', '.join(map(repr, names))} are summed out of the model together, and their "
        f"plates {', '.join(map(repr, plates))} cross, so that the sum has a term for each "
        "combination of all elements; make one of the plates a loop, for i in pyro.plate(...), or "
        "sample one of the sites in the guide"
    )


def _scales(one: SiteRecord, other: SiteRecord, group: list[Term], model: Records) -> str:
    names = ", ".join(repr(t.name) for t in group if model[t.name].summed)
    return (
        f"sites {one.name!r} (scale {_number(one.scale)}, plates {_words(one)}) and "
        f"{other.name!r} (scale {_number(other.scale)}, plates {_words(other)}) of the model meet "
        f"in the sum over {names}, and a scale stands outside the logarithm of a sum, once for "
        "all; give them one scale (one poutine.scale around both, the same subsampled plates), or "
        f"sample {names} in the guide"
    )


def _number(scale: Any) -> str:
    scale = torch.as_tensor(scale)
    return f"{scale.item():.6g}" if scale.numel() == 1 else f"of shape {tuple(scale.shape)}"


def _words(record: SiteRecord) -> str:
    parts = [f"{n!r} {size} of {full}" for n, (size, full) in record.sizes.items()]
    return ", ".join(parts) or "none"
