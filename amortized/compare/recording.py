"""One evaluation as a list of torch calls, which can be run for many draws at once.

What is recorded are the calls below autograd, backward passes included. Tensors from outside
(parameters, data, buffers) are taken as they are at each run; all others are made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

_DETACH: Final = torch.ops.aten.detach.default
_READS: Final = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


class NotRecordedError(Exception):
    """One evaluation does not stand for others: the reason as a clause (internal)."""


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One torch call: which of its arguments are slots, and the slots that its results fill."""

    function: Callable[..., Any]
    arguments: list[Any]
    spec: TreeSpec
    names: tuple[str, ...] | None
    """Of the last arguments, which are passed by name; None: some arguments are nested."""
    read: list[tuple[int, int]]
    """Place among the arguments, and slot."""
    written: list[tuple[int, int]]
    """Place among the results, and slot."""

    def run(self, arguments: list[Any]) -> Any:
        """What the function gives for such leaves."""
        if self.names is None:
            args, kwargs = tree_unflatten(arguments, self.spec)
            return self.function(*args, **kwargs)
        count = len(arguments) - len(self.names)
        named = dict(zip(self.names, arguments[count:], strict=True))
        return self.function(*arguments[:count], **named)

    @property
    def single(self) -> bool:
        """Whether it returns one tensor, and no list."""
        returns = self._schema.returns
        return len(returns) == 1 and isinstance(returns[0].type, torch.TensorType)

    @property
    def writes(self) -> bool:
        """Whether it changes a tensor in place."""
        return self._schema.is_mutable

    @property
    def _schema(self) -> Any:
        # of whatever the dispatcher was asked for, an overload
        function: Any = self.function
        return function._schema


@final
class Recording:
    """The calls of one evaluation.

    Attributes:
        calls: in order.
        result: the slot that is returned.
        elements: of all intermediate results of one run.
    """

    def __init__(self, calls: list[Call], result: int, slots: int, elements: int) -> None:
        self.calls, self.result, self._slots = calls, result, slots
        self.elements = elements
        self._last = _last_uses(calls, result)

    def __call__(self, zero: Tensor) -> Tensor:
        """The result under the present state of the generator; under ``vmap``, one a zero."""
        values: list[Any] = [None] * self._slots
        values[0] = zero
        with torch.no_grad():
            for call, dead in zip(self.calls, self._last, strict=True):
                arguments = call.arguments.copy()
                for place, slot in call.read:
                    arguments[place] = values[slot]
                result = call.run(arguments)
                results = (result,) if isinstance(result, Tensor) else tree_leaves(result)
                for place, slot in call.written:
                    values[slot] = results[place]
                for slot in dead:
                    values[slot] = None
        # what does not vary has a row a draw, too
        return values[self.result] + zero


def recorded(evaluate: Callable[[], Tensor]) -> Recording:
    """Record one evaluation, which is made.

    Raises:
        NotRecordedError: another one may make other calls, or a draw is not made in one place.
    """
    recorder = _Recorder()
    with _NoReads(), recorder:
        found = evaluate()
    return recorder.recording(found)


@final
class _Recorder(TorchDispatchMode):
    """Watches the calls below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Call] = []
        self._slots: dict[int, int] = {}
        # identities hold while the tensors live; slot 0 is the zero of a draw
        self._alive: list[Tensor | None] = [None]
        self._random: set[int] = set()
        self._fresh: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, for seconds, only to keep it out of the next method."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """One call."""
        arguments, spec = tree_flatten((args, kwargs or {}))
        given = [value for value in arguments if isinstance(value, Tensor)]
        random = any(_memory(value) in self._random for value in given)
        if random and torch.Tag.data_dependent_output in func.tags:
            raise NotRecordedError("the programs read the value of a tensor")
        noise = torch.Tag.nondeterministic_seeded in func.tags
        if noise and func._schema.is_mutable:
            self._spread(arguments[0])
        result = func(*args, **(kwargs or {}))
        results = tree_leaves(result)
        nested = any(isinstance(value, list | tuple | dict) for value in _outer(args, kwargs))
        names = None if nested else tuple(kwargs or ())
        self._note(Call(func, arguments, spec, names, [], []), results)
        changed = given if func._schema.is_mutable else []
        for value in (*results, *changed):
            if isinstance(value, Tensor) and (random or noise):
                self._random.add(_memory(value))
        # what a factory makes is passed on by detach, since this class holds it too
        passed_on = func is _DETACH and id(given[0]) in self._fresh
        self._fresh -= {id(value) for value in given}
        views = any(r.alias_info is not None for r in func._schema.returns)
        if passed_on or not views:
            self._fresh |= {id(value) for value in results if isinstance(value, Tensor)}
        return result

    def recording(self, result: Tensor) -> Recording:
        """What was recorded."""
        made = sum(value.numel() for value in self._alive if value is not None)
        found = self._slots.get(id(result))
        if found is None:
            raise NotRecordedError("the gradient does not come from recorded calls")
        return Recording(self._calls, found, len(self._alive), made)

    def _note(self, call: Call, results: list[Any]) -> None:
        places = enumerate(call.arguments)
        read = [(i, self._slots[id(value)]) for i, value in places if id(value) in self._slots]
        written = [(i, self._slot(v)) for i, v in enumerate(results) if isinstance(v, Tensor)]
        for place, _ in read:
            call.arguments[place] = None
        self._calls.append(replace(call, read=read, written=written))

    def _slot(self, tensor: Tensor) -> int:
        if id(tensor) not in self._slots:
            self._slots[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return self._slots[id(tensor)]

    def _spread(self, written: Tensor) -> None:
        """Give every draw its own memory where noise is written in place.

        The zero of a draw is added to what is about to be overwritten.
        """
        if id(written) not in self._fresh or not written.is_floating_point():
            raise NotRecordedError("noise is written into a tensor that has other uses")
        slot = self._slots[id(written)]
        spec = tree_flatten(((None, None), {}))[1]
        add: Any = torch.ops.aten.add.Tensor
        self._calls.append(Call(add, [None, None], spec, (), [(0, slot), (1, 0)], [(0, slot)]))


class _NoReads(TorchFunctionMode):
    """Refuses what would read values past the recording."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch in the programs."""
        if func in _READS:
            raise NotRecordedError("the programs read the value of a tensor")
        return func(*args, **(kwargs or {}))


def _outer(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[Any, ...]:
    return (*args, *(kwargs or {}).values())


def _memory(tensor: Tensor) -> int:
    """The same for all views of one storage."""
    return tensor.untyped_storage()._cdata


def _last_uses(calls: list[Call], result: int) -> list[list[int]]:
    """The slots that nobody reads after each call."""
    last: dict[int, int] = {}
    for index, call in enumerate(calls):
        for _, slot in (*call.read, *call.written):
            last[slot] = index
    dead: list[list[int]] = [[] for _ in calls]
    for slot, index in last.items():
        if slot != result and slot != 0:
            dead[index].append(slot)
    return dead
