"""What a capture holds fixed besides its inputs: numbers and names that programs look up.

A program may read an attribute, a variable that it closes over, a global or an entry of a dict:
``self.beta``, ``TEMPERATURE``, ``config["dropout"]``. A graph has the value that was there when it
was captured. These places are compared before each replay, which costs a few microseconds; where
one was changed, the step is captured again, and the graphs are compared. What the programs change
by themselves while they run (a counter of calls), and what changes all the time and never mattered,
is left to the regular comparisons.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, cast, final

import numpy as np
from torch import Tensor, nn

_NUMBERS: Final = (bool, int, float, complex, str, type(None))
_ARRAYS: Final = (Tensor, np.ndarray)
_PLAIN: Final = (*_NUMBERS, np.generic)
# whose functions and objects are not the user's
_LIBRARIES: Final = frozenset(
    "torch pyro numpy amortized builtins collections functools math itertools typing".split()
)
_MOST: Final = 2000
_DEEPEST: Final = 6
# changes of one place, after which it is no longer looked at
_RESTLESS: Final = 20


@final
class HeldValues:
    """The places that programs look up, and the version of what is there.

    Args:
        programs: the model and the guide.
        modules: every module of theirs.
    """

    def __init__(self, programs: list[Callable[..., Any]], modules: list[nn.Module]) -> None:
        self._names: list[str] = []
        self._reads: list[Callable[[], Any]] = []
        self._changes: list[float] = []
        self._noted: list[int] = []
        self._seen: set[int] = set()
        for module in modules:
            if not _ours(module):
                self._module(module, type(module).__name__)
        for program in programs:
            self._visit(program, _name(program), 0)
        self._last = self._now()
        self._versions = [self._last]
        self._current = 0
        self.changed = ""
        """The place that changed last, with both values."""

    def version(self) -> int:
        """A number for the values that are there now; equal for equal values."""
        now = self._now()
        if not all(map(operator.is_, now, self._last)):
            self._note(now)
        return self._current

    @property
    def versions(self) -> int:
        """How many different sets of values there were."""
        return len(self._versions)

    def after_run(self) -> list[str]:
        """The programs ran: the numbers that they changed by themselves, by name.

        Objects that they replaced (a cache, the last draw) are no longer looked at.
        """
        now, still, moved = self._now(), [], []
        for place, value in enumerate(now):
            if _same(value, self._last[place]):
                still.append(place)
            elif isinstance(value, _PLAIN) and isinstance(self._last[place], _PLAIN):
                still.append(place)
                moved.append(self._names[place])
                self._versions[self._current][place] = value
        self._last = self._versions[self._current]
        self._keep(still)
        return moved

    def matters(self) -> None:
        """What changed last made another graph: those places are looked at for good."""
        for place in self._noted:
            self._changes[place] = -math.inf

    def _keep(self, still: list[int]) -> None:
        if len(still) == len(self._names):
            return
        self._names = [self._names[i] for i in still]
        self._reads = [self._reads[i] for i in still]
        self._changes = [self._changes[i] for i in still]
        self._noted = [new for new, old in enumerate(still) if old in self._noted]
        self._versions = [[values[i] for i in still] for values in self._versions]
        self._last = self._versions[self._current]

    def _note(self, now: list[Any]) -> None:
        changed = [i for i, value in enumerate(now) if not _same(value, self._last[i])]
        if not changed:
            self._last = now
            return
        then, value = self._last[changed[0]], now[changed[0]]
        self.changed = f"{self._names[changed[0]]} was {then!r} and is {value!r}"
        if not isinstance(then, _PLAIN) or not isinstance(value, _PLAIN):
            tensor = isinstance(then, _ARRAYS) or isinstance(value, _ARRAYS)
            kind = "tensor" if tensor else type(then).__name__
            self.changed = f"{self._names[changed[0]]} holds another {kind}"
        self._noted = changed
        for index in changed:
            self._changes[index] += 1
        known = (i for i, values in enumerate(self._versions) if all(map(_same, values, now)))
        self._current = next(known, len(self._versions))
        if self._current == len(self._versions):
            self._versions.append(now)
        self._last = now
        self._keep([i for i, count in enumerate(self._changes) if count < _RESTLESS])

    def _now(self) -> list[Any]:
        return [read() for read in self._reads]

    def _visit(self, value: Any, path: str, depth: int) -> None:
        if depth > _DEEPEST or id(value) in self._seen or isinstance(value, _PLAIN + _ARRAYS):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._module(value, path)
        elif isinstance(value, partial):
            for part in (value.func, *value.args):  # a handler holds its program and itself there
                self._visit(part, path, depth + 1)
            self._entries(value.keywords, value.keywords, path, depth)
        elif isinstance(value, MethodType):
            self._visit(value.__self__, path.rpartition(".")[0] or path, depth + 1)
            self._visit(value.__func__, path, depth + 1)
        elif isinstance(value, FunctionType):
            self._function(value, path, depth)
        elif isinstance(value, dict | list):
            known = value if isinstance(value, dict) else dict(enumerate(value))
            self._entries(value, known, path, depth)
            self._watch(partial(len, value), f"the length of {path}")
        elif _is_users(value):
            self._entries(vars(value), vars(value), path, depth)
            self._class(value, path, depth)

    def _module(self, module: nn.Module, path: str) -> None:
        self._seen.add(id(module))
        own = vars(module)
        held = {name: value for name, value in own.items() if name not in _TORCHS}
        if _from_library(type(module)):
            held = {k: v for k, v in held.items() if k[0] != "_" or isinstance(v, _NUMBERS)}
        self._entries(own, held, path, 0)
        for part in ("_buffers", "_parameters", "_modules"):
            self._entries(own[part], own[part], path, 0)
        if not _from_library(type(module)):
            self._watch(partial(len, own), f"the number of attributes of {path}")
        self._class(module, path, 0)

    def _class(self, owner: Any, path: str, depth: int) -> None:
        """Numbers of the user's class, and what its methods look up."""
        for base in type(owner).__mro__:
            if _from_library(base):
                continue
            for name, value in vars(base).items():
                if isinstance(value, FunctionType):
                    self._visit(value, f"{path}.{name}", depth + 1)
                elif isinstance(value, _NUMBERS) and not name.startswith("__"):
                    place = ChainMap[str, Any](vars(owner), cast(Any, vars(base)))
                    self._place(place, name, value, f"{path}.{name}", depth)

    def _function(self, function: FunctionType, path: str, depth: int) -> None:
        if _from_library(function):
            return
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            self._place(cell, None, _read(cell), f"{name} of {path}", depth)
        names = list(_globals_of(function.__code__))
        known = {n: function.__globals__[n] for n in names if n in function.__globals__}
        self._entries(function.__globals__, known, "", depth)
        for name, value in known.items():  # config.BETA, Config.beta
            if isinstance(value, ModuleType | type) and not _is_library(value):
                looked_up = {n: vars(value)[n] for n in names if n in vars(value)}
                self._entries(vars(value), looked_up, name, depth)

    def _entries(self, owner: Any, held: Mapping[Any, Any], path: str, depth: int) -> None:
        for key, value in dict(held).items():
            self._place(owner, key, value, f"{path}.{key}" if path else str(key), depth)

    def _watch(self, read: Callable[[], Any], path: str) -> None:
        if len(self._names) >= _MOST:
            return
        self._names.append(path)
        self._reads.append(read)
        self._changes.append(0)

    def _place(self, owner: Any, key: Any, value: Any, path: str, depth: int) -> None:
        if isinstance(value, ModuleType | type) or len(self._names) >= _MOST:
            return
        self._watch(_reader(owner, key), path)
        if not isinstance(value, _PLAIN):
            self._visit(value, path, depth + 1)


_TORCHS: Final = frozenset(vars(nn.Module()))


def _same(value: Any, other: Any) -> bool:
    """Numbers and names are compared; a tensor or an object is the same only as itself."""
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, tuple):
        return len(value) == len(other) and all(map(_same, value, other))
    return isinstance(value, _PLAIN) and bool(value == other)


def _reader(owner: Any, key: Any) -> Callable[[], Any]:
    if isinstance(owner, CellType):
        return partial(_read, owner)
    return partial(_item, owner, key) if isinstance(owner, list) else partial(owner.get, key)


def _item(held: list[Any], index: int) -> Any:
    return held[index] if index < len(held) else None


def _read(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _name(program: Any) -> str:
    known = isinstance(program, FunctionType | MethodType)
    return program.__name__ if known else type(program).__name__


def _ours(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "amortized"


def _from_library(value: Any) -> bool:
    return str(getattr(value, "__module__", None)).partition(".")[0] in _LIBRARIES


def _is_library(value: ModuleType | type) -> bool:
    return value.__name__.partition(".")[0] in _LIBRARIES or _from_library(value)


def _is_users(value: Any) -> bool:
    """Whether an object is the user's, or one of Pyro's handlers (poutine.scale(model, beta))."""
    if inspect.getattr_static(value, "__array__", None) is not None:  # a table
        return False
    handler = type(value).__module__.startswith("pyro.poutine")
    if _from_library(type(value)) and not handler:
        return False
    try:
        vars(value)
    except TypeError:
        return False
    return True
