"""Running the user's programs without leaving a trace."""

from __future__ import annotations

import pickle
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import getclosurevars, isfunction, ismethod
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.parameter import is_lazy

from amortized.programs.modules import modules_of
from amortized.programs.study import outside_generators, undisturbed

# a longer list or dict holds data, not generators
_LONG = 1000


@contextmanager
def isolated(*programs: Any) -> Iterator[None]:
    """Run programs, and put everything back that a run can move.

    Generators, also those that the programs hold, buffers, attributes of modules and of callable
    objects (also what an autoguide makes at its first call), ``requires_grad``, and Pyro's
    parameter store, of which a copy is current meanwhile. Warnings of the programs are not shown: a
    run in training shows them.
    """
    store = pyro.get_param_store()
    with ExitStack() as stack:
        stack.enter_context(undisturbed(*programs))
        stack.enter_context(_remembered(*programs))
        stack.enter_context(generators_kept(*programs))
        stack.enter_context(store.scope(store.get_state()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(pyro.validation_enabled(True))
        yield


def seed_torch(seed: int) -> None:
    """Seed torch; `torch.manual_seed` would leave a seed for a CUDA that is started later."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def _remembered(*programs: Any) -> Iterator[None]:
    owners = [*_owners(*programs)]
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners]
    containers = [
        (value, value.copy())
        for _, saved in attributes
        for value in saved.values()
        if type(value) in (dict, OrderedDict, list, set)
    ]
    modules = modules_of(*programs)
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    buffers = [b for module in modules for b in module.buffers(recurse=False)]
    flags = [(p, p.requires_grad) for p in parameters]
    # a lazy layer becomes an ordinary one at its first run, and so do its tensors
    kinds = [(owner, type(owner)) for owner in owners]
    lazy = [(tensor, type(tensor)) for tensor in (*parameters, *buffers) if is_lazy(tensor)]
    try:
        yield
    finally:
        for living, saved in attributes:
            living.clear()
            living.update(saved)
        for owner, kind in kinds:
            if type(owner) is not kind:
                owner.__class__ = kind
        for tensor, kind in lazy:
            if type(tensor) is not kind:
                tensor.data = tensor.new_empty(0)
                setattr(tensor, "__class__", kind)  # noqa: B010 - a property that torch assigns to
        for living, saved in containers:
            living.clear()
            living.extend(saved) if isinstance(living, list) else living.update(saved)
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def _owners(*programs: Any) -> Iterator[Any]:
    """The objects with attributes: modules, their Pyro contexts, and callable objects."""
    modules = modules_of(*programs)
    yield from modules
    contexts = {id(m._pyro_context): m._pyro_context for m in modules if isinstance(m, PyroModule)}
    yield from contexts.values()
    for program in programs:
        owner = program.__self__ if ismethod(program) else program
        if not isinstance(owner, nn.Module) and getattr(owner, "__dict__", None) is not None:
            yield owner


@contextmanager
def generators_kept(*programs: Any) -> Iterator[None]:
    """Leave the generators that programs hold where they were."""
    restore = [_restoring(generator) for generator in _generators(*programs)]
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def outside_states(*programs: Any) -> Hashable:
    """Python's and numpy's generators, the global ones and those that programs hold."""
    return outside_generators(), *(_state(generator) for generator in _generators(*programs))


def _state(generator: Any) -> Hashable:
    if isinstance(generator, torch.Generator):  # a capture follows it
        return None
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state())
    return repr(generator.bit_generator.state)


def torch_generators(*programs: Any) -> list[torch.Generator]:
    """Those of torch that programs hold."""
    return [g for g in _generators(*programs) if isinstance(g, torch.Generator)]


def _restoring(generator: Any) -> Callable[[], object]:
    """What puts a generator where it stands now."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)


def _generators(*programs: Any) -> Iterator[Any]:
    """The generators that programs hold: in attributes, arguments, closures and containers."""
    waiting: list[Any] = [*programs, *(vars(owner) for owner in _owners(*programs))]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(
            value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState
        ):
            yield value
        elif isinstance(value, dict):
            waiting += value.values() if len(value) <= _LONG else ()
        elif isinstance(value, list | tuple | set):
            waiting += value if len(value) <= _LONG else ()
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif ismethod(value):
            waiting += [value.__func__]
        elif isfunction(value):
            waiting += [v for v in _outer_values(value) if not isinstance(v, type)]
        elif isinstance(value, nn.Module):
            waiting.append(vars(value))


def _outer_values(function: Any) -> list[Any]:
    """What a function finds outside of itself; of functions there, those of its closure only."""
    try:
        outer = getclosurevars(function)
    except ValueError:  # a cell that is not filled yet
        return []
    return [*outer.nonlocals.values(), *(v for v in outer.globals.values() if not isfunction(v))]
