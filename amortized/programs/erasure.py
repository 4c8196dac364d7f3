"""The check for erased axes: a program must treat the copies of a site independently.

``z.mean()``, ``flatten``, positive dims or batch norm mix copies and give a wrong number without an
error. So at each new structure every copy is replayed alone and its terms are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from amortized.errors import ProgramError, quoted
from amortized.programs.batches import aliases
from amortized.programs.handlers import Context
from amortized.programs.modules import modules_of
from amortized.programs.records import Layout, Run
from amortized.programs.run import run_pair, values_of
from amortized.programs.study import picked, undisturbed

Key = tuple[str, bool]
"""A term's name, and whether it is the model's."""

# a program that mixes copies mixes all of them, so a few witnesses of a long axis are enough
_WITNESSES = 4


def refuse_erased_axes(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    run: Run,
    context: Context,
) -> None:
    """Replay copies alone and compare every term with the joint run.

    Raises:
        ProgramError: naming the site and the term whose copies are mixed.
    """
    values = values_of(run)
    drawn_by = {latent.name: latent.estimator for latent in run.latents}
    together = replace(context, layout=run.layout, fixed=values, drawn_by=drawn_by)
    try:
        joint = _replay(model, guide, args, kwargs, together, 0)
    except KeyError:  # a flow without an inverse knows the density of its own draws only
        return
    rounding = _rounding([*values.values(), *joint.values()], modules_of(model, guide))
    if run.summed:
        _refuse_erased_sums(model, guide, args, kwargs, together, rounding)
    for axis_name, copy in _witnesses(run.layout, run):
        fixed = {
            name: picked(value, run.layout, _event_dim(run, name), copy)
            if name in run.guide
            else value
            for name, value in values.items()
        }
        plain = Layout(run.layout.nesting)
        alone = replace(together, layout=plain, choose=None, fixed=fixed)
        first, second = (_replay(model, guide, args, kwargs, alone, seed) for seed in (0, 1))
        for key in joint.keys() | first.keys():
            if key not in joint or key not in first or key not in second:
                raise ProgramError(_structure(key, axis_name))
            # a term with randomness of its own cannot be compared
            if torch.equal(first[key], second[key]):
                row = picked(joint[key], run.layout, 0, copy)
                if not _close(row, first[key], rounding):
                    raise ProgramError(_mixed(key, axis_name))


def _refuse_erased_sums(
    model: Any, guide: Any, args: Any, kwargs: Any, context: Context, rounding: float
) -> None:
    """Replay the model with one value at each summed-out site, and compare its statements.

    Raises:
        ProgramError: naming the site whose log-probability mixes values of summed-out sites.
    """
    all_values = _run(model, guide, args, kwargs, context, 0)
    joint = _densities(all_values)
    for pinned in _pins(all_values):
        alone = replace(context, pinned=pinned)
        runs = [_run(model, guide, args, kwargs, alone, seed) for seed in (0, 1)]
        first, second = map(_densities, runs)
        for name, one in joint.items():
            open_dims = all_values.model[name].open_dims
            if not open_dims:
                continue
            others = quoted(sorted({*open_dims.values()} - {name} or {name}), 6)
            axis = f"the values of the summed-out sites {others}"
            if name not in first or name not in second:
                raise ProgramError(_structure((name, True), axis))
            for dim, own in open_dims.items():
                if one.dim() >= -dim and one.shape[dim] > 1:
                    one = one.narrow(dim, pinned[own], 1)
            if torch.equal(first[name], second[name]) and not _close(one, first[name], rounding):
                raise ProgramError(_mixed_values(name, axis))


def _pins(run: Run) -> Iterator[dict[str, int]]:
    """Places in the supports of summed-out sites: the first, the last, and some between.

    Inside ``pyro.markov`` sites share dims, and what reads a site out of its reach takes it for
    another one on that dim. That shows only where the two have different values.
    """
    sizes = {record.name: record.summed for record in run.summed}
    yield dict.fromkeys(sizes, 0)
    yield {name: size - 1 for name, size in sizes.items()}
    yield {name: place % size for place, (name, size) in enumerate(sizes.items())}
    # sites that share a dim: each two of them are told apart by some digit of their ranks
    ranks = _ranks_on_dims(run)
    for digit in range(max(ranks.values(), default=0).bit_length()):
        yield {
            name: size - 1 if ranks[name] >> digit & 1 else digit % max(1, size - 1)
            for name, size in sizes.items()
        }


def _ranks_on_dims(run: Run) -> dict[str, int]:
    """How many summed-out sites had the dim of a site before it."""
    taken: dict[int, int] = {}
    found = {}
    for record in run.summed:
        dim = next(dim for dim, own in record.open_dims.items() if own == record.name)
        found[record.name] = taken.get(dim, 0)
        taken[dim] = found[record.name] + 1
    return found


def _densities(run: Run) -> dict[str, Tensor]:
    """log p of the model's statements: of factors, and of terms that no sum was taken of."""
    terms = [t for t in run.terms if t.in_model and not t.sums]
    found = {t.name: t.value for t in terms}
    for term in run.factors:
        found[term.name] = scale_and_mask(term.value, run.model[term.name].scale)
    return found


def _replay(
    model: Any, guide: Any, args: Any, kwargs: Any, context: Context, seed: int
) -> dict[Key, Tensor]:
    """The terms of a run with fixed values, by name and side."""
    run = _run(model, guide, args, kwargs, context, seed)
    return {(t.name, t.in_model): t.value for t in run.terms}


def _run(model: Any, guide: Any, args: Any, kwargs: Any, context: Context, seed: int) -> Run:
    args, kwargs = aliases(args, kwargs)
    with undisturbed(model, guide), torch.no_grad(), _dropout_off(model, guide):
        torch.manual_seed(seed)
        return run_pair(model, guide, args, kwargs, context)


def _rounding(tensors: list[Tensor], modules: list[nn.Module]) -> float:
    """A relative tolerance for the coarsest floating type that takes part."""
    weights = [p for module in modules for p in module.parameters(recurse=False)]
    kinds = {t.dtype for t in [*tensors, *weights] if t.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=1e-7) ** 0.5


def _close(joint: Tensor, alone: Tensor, rounding: float) -> bool:
    finite = alone[alone.isfinite()]
    scale = 1.0 + (finite.abs().max() if finite.numel() else 0.0)
    close = (joint - alone).abs() <= rounding * scale
    return bool((close | (joint == alone) | (joint.isnan() & alone.isnan())).all())


def _witnesses(layout: Layout, run: Run) -> Iterator[tuple[str, dict[int, int]]]:
    """A name for the axis and an index for each dim: all zeros, then one axis at a time."""
    sizes = {
        f"the copies of site {latent.name!r}": (latent.draw.axis, latent.draw.copies)
        for latent in run.latents
        if latent.draw.axis is not None and latent.span is None
    }
    if layout.rows > 1:
        names = ", ".join(repr(name) for name in layout.spans)
        sizes[f"the copies of sites {names}, which lie in rows"] = (layout.row_dim, layout.rows)
    if layout.num_particles > 1:
        sizes["the particles"] = (layout.particle_dim, layout.num_particles)
    for name, (dim, count) in sizes.items():
        for index in sorted({round(i * (count - 1) / (_WITNESSES - 1)) for i in range(_WITNESSES)}):
            if dim is not None:
                yield name, {dim: index}


def _event_dim(run: Run, name: str) -> int:
    return len(run.guide[name].fn.event_shape)


@contextmanager
def _dropout_off(*programs: Any) -> Iterator[None]:
    """Dropout draws other masks for other shapes: off while copies are compared."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    active = [
        module for module in modules_of(*programs) if isinstance(module, kinds) and module.training
    ]
    try:
        for module in active:
            module.training = False
        yield
    finally:
        for module in active:
            module.training = True


def _mixed(key: Key, axis_name: str) -> str:
    return (
        f"site {key[0]!r} of the {'model' if key[1] else 'guide'} mixes {axis_name}: evaluated "
        "alone, one copy gives another log-probability. A reduction over all dims (mean(), sum(), "
        "max()), flatten, a positive dim, or batch norm in training mode erases the extra left "
        "dims; reduce over negative dims, wrap the network in am.Fold(network), or evaluate copy "
        "by copy with VariationalLoss(..., vectorize=False)"
    )


def _mixed_values(name: str, axis_name: str) -> str:
    return (
        f"site {name!r} of the model mixes {axis_name}: evaluated alone, one value gives another "
        "log-probability. A reduction over all dims (mean(), sum(), max()), flatten, a positive "
        "dim, or batch norm in training mode erases the extra left dims; reduce over negative "
        "dims, wrap the network in am.Fold(network), or sample the site in the guide. And what a "
        "statement reads of pyro.markov must be in its reach, which is one step back, or as many "
        "as history= says"
    )


def _structure(key: Key, axis_name: str) -> str:
    return (
        f"site {key[0]!r} of the {'model' if key[1] else 'guide'} exists only when {axis_name} "
        "run together, or only when one copy runs alone: the program's structure depends on its "
        "values; use one sample and one particle there, or VariationalLoss(..., vectorize=False)"
    )
