"""What an object of the caller's is made of, as plain values that are the same in every process.

Functions count with their code and with what they refer to, objects with their attributes, networks
with the shapes of their parameters, whose values need not be drawn alike. Libraries count by name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amortized.fit import digests

_PLAIN: Final = (bool, int, float, str, type(None))
_NAMED: Final = (torch.dtype, torch.device, torch.layout, torch.Size, complex, bytes)
_LIBRARIES: Final = re.compile(
    r"[/\\\\](site|dist)-packages[/\\\\]|[/\\\\]lib[/\\\\]python3[^/\\\\]*[/\\\\]|^<frozen"
)
_OWN: Final = __name__.partition(".")[0]
_PYTHON: Final = ".".join(map(str, sys.version_info[:2]))
# what every module has
_OF_MODULES: Final = frozenset(vars(nn.Module()))
_LENGTH: Final = 12


def made_of(value: Any) -> Any:
    """A nested value for JSON; equal for what does the same, as far as can be seen.

    >>> made_of(partial(print, sep=""))["given"]
    {'sep': ''}
    """
    return _Walk().of(value)


def digest_of(*parts: Any) -> str:
    """As `amortized.fit.digests.digest_of`, cut to what a person can compare.

    >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2)) != digest_of(torch.zeros(3))
    True
    """
    return digests.digest_of(*parts)[:_LENGTH]


def difference(then: Any, now: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first place where two nested values differ, and what is there.

    >>> difference({"lr": 0.1, "size": {"z": 3}}, {"lr": 0.1, "size": {"z": 4}}, "options")
    ('options.size.z', 3, 4)
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *then]):
            found = difference(then.get(key), now.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        found = (difference(one, other, f"{name}[{place}]") for place, (one, other) in pairs)
        return next((each for each in found if each is not None), None)
    return None if then == now else (name, then, now)


@final
class _Walk:
    """One look at an object; what was met before is not entered again."""

    def __init__(self) -> None:
        self._met: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            # JSON gives floats back as they are, except for these
            return (
                value if not isinstance(value, float) or abs(value) < float("inf") else f"{value}"
            )
        if isinstance(value, _NAMED):
            return repr(value)
        if isinstance(value, Tensor | np.ndarray):
            return digest_of(value)
        if id(value) in self._met:
            return f"again {getattr(value, '__qualname__', type(value).__name__)}"
        self._met[id(value)] = value
        found = self._made_of(value)
        if isinstance(value, Mapping | list | tuple | set | frozenset | partial):
            # equal ones need not be one in another process
            del self._met[id(value)]
        return found

    def _made_of(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self.of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.of(item)) for item in value)
        if isinstance(value, type):
            return self._kind(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return {**self._function(value.__func__), "self": self.of(value.__self__)}
        if isinstance(value, partial):
            made = {"function": self.of(value.func), "given": self.of(value.keywords)}
            return {**made, "first": self.of(value.args)} if value.args else made
        if isinstance(value, nn.Module):
            return self._network(value)
        return self._object(value)

    def _kind(self, kind: type) -> Any:
        code = {}
        for cls in kind.__mro__:
            functions = [f for f in vars(cls).values() if isinstance(f, FunctionType)]
            if functions and all(map(_is_users, functions)):
                code[cls.__qualname__] = [self.of(function) for function in functions]
        return {"class": kind.__qualname__, "code": code} if code else kind.__qualname__

    def _function(self, function: Any) -> dict[str, Any]:
        found = {"name": getattr(function, "__qualname__", type(function).__qualname__)}
        if not isinstance(function, FunctionType) or not _is_users(function):
            return found
        values = {name: self.of(item) for name, item in _referred(function)}
        return {**found, "code": f"python {_PYTHON}, {_code(function.__code__)}", "values": values}

    def _network(self, network: nn.Module) -> dict[str, Any]:
        own = {name: item for name, item in vars(network).items() if name not in _OF_MODULES}
        tensors = network.named_parameters(recurse=False)
        buffers = network.named_buffers(recurse=False)
        return {
            "class": self._kind(type(network)),
            **{name: self.of(item) for name, item in own.items()},
            **{name: "lazy" if is_lazy(p) else str(tuple(p.shape)) for name, p in tensors},
            **{name: "lazy" if is_lazy(b) else self.of(b) for name, b in buffers},
            **{name: self.of(child) for name, child in network.named_children()},
        }

    def _object(self, value: Any) -> Any:
        kind = self._kind(type(value))
        try:
            # what a copy would be made of
            state = value.__reduce_ex__(2)[2]
        except Exception:
            state = getattr(value, "__dict__", None)
        if isinstance(state, Mapping) and state:
            return {"class": kind, **{str(name): self.of(item) for name, item in state.items()}}
        return {"class": kind, "text": re.sub(r" at 0x[0-9a-f]+", "", repr(value))}


def _is_users(function: FunctionType) -> bool:
    own = function.__module__ is not None and function.__module__.partition(".")[0] == _OWN
    return not own and _LIBRARIES.search(function.__code__.co_filename) is None


def _code(code: CodeType) -> str:
    """Of what a function does, wherever it stands in its file."""
    consts = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return digest_of(code.co_code, consts, names)


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _referred(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to, by name: defaults, closures, and globals that runs leave alone."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        if _is_constant(value):
            yield name, value
    used = set(_names(function.__code__))
    spaces = [function.__globals__]
    found = (function.__globals__.get(name) for name in sorted(used))
    spaces += [vars(module) for module in found if isinstance(module, ModuleType)]
    for place, space in enumerate(spaces):
        for name in sorted(used & space.keys()):
            value = space[name]
            if _is_users_own(value) or (not place and _is_constant(value)):
                yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)


def _is_users_own(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return _is_users(value)
    functions = vars(value).values() if isinstance(value, type) else ()
    return any(isinstance(f, FunctionType) and _is_users(f) for f in functions)


def _is_constant(value: Any) -> bool:
    """Not what runs fill or draw from: caches, data, networks and generators are measured."""
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) > 0 and all(map(_is_constant, value))
    if isinstance(value, Mapping):
        return len(value) > 0 and all(map(_is_constant, value.values()))
    if isinstance(value, partial):
        return True
    if is_dataclass(value) and not isinstance(value, type):
        return all(map(_is_constant, vars(value).values()))
    return isinstance(value, (*_PLAIN, *_NAMED)) or _is_users_own(value)
