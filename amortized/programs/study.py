"""What is learned of a pair once per input signature, without disturbing anything."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amortized.errors import UsageError
from amortized.estimators.base import Noise
from amortized.programs.handlers import Context, DeeperPlatesError
from amortized.programs.records import DataPlate, Layout, Run, SiteRecord
from amortized.programs.run import run_pair


@dataclass
class Study:
    """Facts about a pair of programs on inputs of one signature."""

    nesting: int
    data: DataPlate
    """The data plate by name, or ``DataPlate(None)`` if there is none."""
    sites: set[str]
    programs: tuple[Any, Any]
    """Held so that the identity in the cache's key stays theirs."""


@contextmanager
def undisturbed(*programs: Any) -> Iterator[None]:
    """Run something and leave no trace: generators and module buffers are put back."""
    python, legacy = random.getstate(), np.random.get_state()
    buffers = [
        (buffer, buffer.clone())
        for module in modules_of(*programs)
        for buffer in module.buffers(recurse=False)
    ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def probe(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: DataPlate,
    nesting: int,
    noise: Noise,
) -> Study:
    """Run the pair once with one plain draw a site, to see its sites and plates."""
    while True:
        context = Context(Layout(nesting), noise, data=replace(data, size=None))
        try:
            with undisturbed(model, guide), torch.no_grad():
                run = run_pair(model, guide, args, kwargs, context)
        except DeeperPlatesError as deeper:
            nesting = deeper.nesting
            continue
        found = DataPlate(data_plate_of(run.model, data.name))
        latents = {name for name, r in run.guide.items() if not r.observed}
        return Study(max(nesting, _depth(run)), found, latents, (model, guide))


def _depth(run: Run) -> int:
    dims = [-dim for r in (*run.guide.values(), *run.model.values()) for _, dim in r.plates]
    return max(dims, default=0)


def data_plate_of(model: Mapping[str, SiteRecord], wanted: str | None) -> str | None:
    """The plate whose elements are data: the one asked for, or the sole outermost one observed.

    Raises:
        UsageError: the plate asked for holds no site of the model.
    """
    everywhere = sorted({plate for record in model.values() for plate in record.sizes})
    if wanted is not None:
        if wanted not in everywhere:
            raise UsageError(
                f"data_plate={wanted!r}: no site of the model is in such a plate; the model has "
                f"{everywhere or 'no plates'}"
            )
        return wanted
    observed = [r for r in model.values() if r.observed and not r.auxiliary]
    outermost = {next(iter(r.sizes)) for r in observed if r.sizes}
    return outermost.pop() if len(outermost) == 1 else None


def size_of(model: Mapping[str, SiteRecord], plate: str | None) -> int | None:
    """The full size of a plate in a run of the model."""
    if plate is None:
        return None
    return next((r.sizes[plate][1] for r in model.values() if plate in r.sizes), None)


def identity(program: Any) -> Any:
    """A key that stays the same for one program: bound methods are new objects at each access."""
    owner = getattr(program, "__self__", None)
    return (id(owner), id(program.__func__)) if owner is not None else id(program)


def modules_of(*programs: Any) -> list[nn.Module]:
    """Every module that the programs are, belong to or close over, submodules included."""
    roots: list[Any] = []
    for program in programs:
        function = program.func if isinstance(program, partial) else program
        owner = getattr(function, "__self__", None)
        roots += [program, function, owner]
        if owner is not None and not isinstance(owner, nn.Module):
            roots += getattr(owner, "__dict__", {}).values()
        if isinstance(program, partial):
            roots += [*program.args, *program.keywords.values()]
        if inspect.isfunction(function) or inspect.ismethod(function):
            outer = inspect.getclosurevars(function)
            roots += [*outer.nonlocals.values(), *outer.globals.values()]
    found = {id(m): m for r in roots if isinstance(r, nn.Module) for m in r.modules()}
    return list(found.values())


def picked(value: Tensor, layout: Layout, event_dim: int, copy: Mapping[int, int]) -> Tensor:
    """One copy of a value: every dim left of the plates at one index, then dropped.

    ``copy`` maps a left dim (counted from the right of the batch shape) to an index, 0 otherwise.
    """
    batch = value.dim() - event_dim
    for dim in range(-batch, -layout.nesting):
        index = copy.get(dim, 0)
        value = value.select(0, index if value.shape[0] > 1 else 0)
    return value
