"""The check for erased axes: a program must treat the copies of a site independently.

``z.mean()``, ``flatten``, positive dims or batch norm mix copies and give a wrong number without an
error. So at each new structure every copy is replayed alone and its terms are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amortized.errors import ProgramError
from amortized.programs.handlers import Context
from amortized.programs.records import Layout, Run, Term
from amortized.programs.run import run_pair, values_of
from amortized.programs.study import picked, undisturbed

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
    for axis_name, copy in _witnesses(run.layout, run):
        fixed = {
            name: picked(value, run.layout, _event_dim(run, name), copy)
            if name in run.guide
            else value
            for name, value in values.items()
        }
        alone = Context(Layout(run.layout.nesting), context.noise, None, context.data, fixed)
        first, second = (_replay(model, guide, args, kwargs, alone, seed) for seed in (0, 1))
        for term in run.terms:
            if term.role in ("likelihood", "prior", "guide"):
                _compare(term, first, second, run.layout, axis_name, copy)


def _replay(
    model: Any, guide: Any, args: Any, kwargs: Any, context: Context, seed: int
) -> dict[tuple[str, bool], Tensor]:
    """The terms of one copy alone, by name and side."""
    with undisturbed(model, guide), torch.no_grad(), _dropout_off(model, guide):
        torch.manual_seed(seed)
        run = run_pair(model, guide, args, kwargs, context)
    return {(t.name, t.in_model): t.value for t in run.terms}


def _compare(
    term: Term,
    first: Mapping[tuple[str, bool], Tensor],
    second: Mapping[tuple[str, bool], Tensor],
    layout: Layout,
    axis_name: str,
    copy: Mapping[int, int],
) -> None:
    key = term.name, term.in_model
    if key not in first or key not in second:
        raise ProgramError(_structure(term, axis_name))
    alone = first[key]
    if not torch.equal(alone, second[key]):
        return  # the term has randomness of its own: copies cannot be compared
    joint = picked(term.value.detach(), layout, 0, copy)
    coarse = torch.finfo(alone.dtype).eps ** 0.5
    scale = 1.0 + alone[alone.isfinite()].abs().max() if alone.isfinite().any() else 1.0
    same = (joint - alone).abs() <= coarse * scale
    if not bool((same | (joint == alone) | (joint.isnan() & alone.isnan())).all()):
        raise ProgramError(_mixed(term, axis_name))


def _witnesses(layout: Layout, run: Run) -> Iterator[tuple[str, dict[int, int]]]:
    """A name for the axis and an index for each dim: all zeros, then one axis at a time."""
    sizes = {
        f"the copies of site {latent.name!r}": (latent.draw.axis, latent.draw.copies)
        for latent in run.latents
        if latent.draw.axis is not None
    }
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
        module
        for program in programs
        if isinstance(program, nn.Module)
        for module in program.modules()
        if isinstance(module, kinds) and module.training
    ]
    try:
        for module in active:
            module.training = False
        yield
    finally:
        for module in active:
            module.training = True


def _mixed(term: Term, axis_name: str) -> str:
    side = "model" if term.in_model else "guide"
    return (
        f"site {term.name!r} of the {side} mixes {axis_name}: evaluated alone, one copy gives "
        "another log-probability. A reduction over all dims (mean(), sum(), max()), flatten, "
        "a positive dim, or batch norm in training mode erases the extra left dims; reduce over "
        "negative dims, wrap the network in am.Fold(network), or evaluate copy by copy with "
        "VariationalLoss(..., vectorize=False)"
    )


def _structure(term: Term, axis_name: str) -> str:
    return (
        f"site {term.name!r} exists when {axis_name} run together, but not when one copy runs "
        "alone: the program's structure depends on its values; use one sample and one particle "
        "there, or VariationalLoss(..., vectorize=False)"
    )
