"""What is learned of a pair once per input signature, without disturbing anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import ismethod
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortized.errors import UsageError
from amortized.estimators.base import Noise, TorchNoise, base_of
from amortized.programs.batches import aliases, key_of
from amortized.programs.handlers import Context, GuideHandler
from amortized.programs.modules import buffers_aside
from amortized.programs.records import DataPlate, Layout, Run, SiteRecord
from amortized.programs.run import execute, run_pair, with_room


@dataclass
class Study:
    """Facts about a pair of programs on inputs of one signature."""

    nesting: int
    data: DataPlate
    """The data plate by name, or ``DataPlate(None)`` if there is none."""
    sites: set[str]
    """Latents of the guide."""
    observed: set[str]
    """Sites that the model observes; another batch may leave one latent."""
    programs: tuple[Any, Any]
    """Held so that the identity in the cache's key stays theirs."""
    rows: dict[int, int] = field(default_factory=dict)
    """Rows that copies need, by the number of particles."""
    structures: dict[Any, int] = field(default_factory=dict)
    """How often each structure with copies or particles has run."""


@contextmanager
def undisturbed(*programs: Any) -> Iterator[None]:
    """Run something and leave no trace: generators and module buffers are put back."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)), buffers_aside(*programs):
        # another stream: what is initialized in here must not repeat in the draws that follow
        seed = int(torch.randint(2**62, ()))
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def outside_generators() -> Hashable:
    """The state of Python's and numpy's global generators, of which torch and Pyro know nothing."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return random.getstate(), name, keys.tobytes(), *rest


def probe(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    data: DataPlate,
    *,
    nesting: int,
    noise: Noise,
) -> Study:
    """Run the pair once with one plain draw a site, to see its sites and plates."""
    args, kwargs = aliases(args, kwargs)

    def attempt(room: int) -> Run:
        context = Context(Layout(room), noise, data=replace(data, size=None))
        with undisturbed(model, guide), torch.no_grad():
            return run_pair(model, guide, args, kwargs, context)

    run, nesting = with_room(nesting, attempt)
    found = DataPlate(data_plate_of(run.model, data.name))
    latents = {name for name, r in run.guide.items() if not r.observed}
    observed = {name for name, r in run.model.items() if r.observed}
    return Study(max(nesting, _depth(run)), found, latents, observed, (model, guide))


def run_alone(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Run a guide without its model, with plain draws, for what it declares."""

    def attempt(room: int) -> None:
        context = Context(Layout(room), TorchNoise())
        execute(guide, args, kwargs, GuideHandler(context), context)

    with_room(0, attempt)


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
    observed = [
        r
        for r in model.values()
        if r.observed and not r.auxiliary and type(base_of(r.fn)).__name__ != "Delta"
    ]
    outermost = {next(iter(r.sizes)) for r in observed if r.sizes}
    return outermost.pop() if len(outermost) == 1 else None


def size_of(model: Mapping[str, SiteRecord], plate: str | None) -> int | None:
    """The full size of a plate in a run of the model."""
    if plate is None:
        return None
    return next((r.sizes[plate][1] for r in model.values() if plate in r.sizes), None)


def identity(program: Any) -> Any:
    """A key that stays the same for one program.

    Bound methods are new objects at each access, and so are partials and handlers such as
    ``poutine.scale(model, beta)``: they count as what they wrap and how. Numbers count by type, so
    that an annealed scale is no new program.
    """
    if isinstance(program, partial):
        named = sorted(program.keywords.items())
        return (identity(program.func), *map(identity, program.args), *map(identity, named))
    if isinstance(program, Messenger):
        held = sorted(vars(program).items())
        return (type(program).__qualname__, *((name, identity(value)) for name, value in held))
    if ismethod(program):
        return (id(program.__self__), id(program.__func__))
    return id(program) if callable(program) else key_of(program)


def picked(value: Tensor, layout: Layout, event_dim: int, copy: Mapping[int, int]) -> Tensor:
    """One copy of a value: every dim left of the plates at one index, then dropped.

    ``copy`` maps a left dim (counted from the right of the batch shape) to an index, 0 otherwise.
    """
    batch = value.dim() - event_dim
    for dim in range(-batch, -layout.nesting):
        index = copy.get(dim, 0)
        value = value.select(0, index if value.shape[0] > 1 else 0)
    return value
