"""The modules that programs are made of, and their buffers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import getclosurevars, isfunction, ismethod
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy


def modules_of(*programs: Any) -> list[nn.Module]:
    """Every module that the programs are, belong to or close over, submodules included."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = list(programs)
    while waiting:
        program = waiting.pop()
        if id(program) in seen:
            continue
        seen.add(id(program))
        if isinstance(program, nn.Module):
            found |= {id(module): module for module in program.modules()}
        elif isinstance(program, partial):
            waiting += [program.func, *program.args, *program.keywords.values()]
        elif ismethod(program):
            owner = program.__self__
            held = getattr(owner, "__dict__", {})
            waiting += [owner, program.__func__, *_modules_among(held.values())]
        elif isfunction(program):
            waiting += _closed_over(program)
        elif isfunction(call := vars(type(program)).get("__call__")):
            waiting.append(MethodType(call, program))
    return list(found.values())


def _closed_over(function: Any) -> list[Any]:
    try:
        outer = getclosurevars(function)
    except ValueError:  # a cell that is not filled yet
        return []
    values = [*outer.nonlocals.values(), *outer.globals.values()]
    inner = [v for v in outer.nonlocals.values() if ismethod(v) or isfunction(v)]
    return inner + [v for v in values if isinstance(v, nn.Module | partial)]


def _modules_among(values: Iterable[Any]) -> list[nn.Module]:
    return [value for value in values if isinstance(value, nn.Module)]


@contextmanager
def buffers_aside(*programs: Any) -> Iterator[None]:
    """Run something on copies of the modules' buffers, which are put back afterwards.

    A backward pass may still need the buffers as they were, so copies stand in for them.
    """
    originals = [
        (module, name, buffer)
        for module in modules_of(*programs)
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    for module, name, buffer in originals:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer
