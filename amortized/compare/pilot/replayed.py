"""A recording as one Python function, whose time is that of a captured step.

`Recording` keeps arguments as trees, for runs of many draws, and unpacking them takes longer than
many a torch call. Here each call is a line of code, as in the graphs that training replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from amortized.compare.recording import Call, Recording

_DETACH: Final = torch.ops.aten.detach.default
# the slot of the zero that a recording is called with
_ZERO: Final = 0


def replayed(recording: Recording) -> Callable[[Tensor], Tensor]:
    """A function that does what the recording does, without what nobody reads.

    >>> from amortized.compare.recording import recorded
    >>> again = replayed(recorded(lambda: torch.ones(2).mul(3.0)))
    >>> again(torch.zeros(()))
    tensor([3., 3.])
    """
    calls = _needed(recording)
    source = _Source()
    last = {slot: index for index, call in enumerate(calls) for slot in _slots(call)}
    for index, call in enumerate(calls):
        source.add(call)
        dead = [slot for slot in _slots(call) if last[slot] == index]
        source.free([slot for slot in dict.fromkeys(dead) if slot != recording.result])
    return source.function(recording.result)


def _needed(recording: Recording) -> list[Call]:
    """The calls that the result rests on, and those that write."""
    wanted, kept = {recording.result}, []
    for call in reversed(recording.calls):
        if call.writes or any(slot in wanted for _, slot in call.written):
            wanted |= {slot for _, slot in call.read}
            kept.append(call)
    return kept[::-1]


def _slots(call: Call) -> list[int]:
    return [slot for _, slot in (*call.read, *call.written) if slot != _ZERO]


@final
class _Slot:
    """Stands for a value that is known at a run."""

    def __init__(self, number: int) -> None:
        self.number = number


@final
class _Source:
    """Lines of code, and what their names stand for."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {}
        self._lines: list[str] = []

    def add(self, call: Call) -> None:
        """One call."""
        arguments = call.arguments.copy()
        for place, slot in call.read:
            arguments[place] = _Slot(slot)
        if call.function is _DETACH and call.read:
            self._lines.append(f"v{call.written[0][1]} = v{call.read[0][1]}")
            return
        args, kwargs = tree_unflatten(arguments, call.spec)
        words = [*map(self._word, args), *(f"{k}={self._word(v)}" for k, v in kwargs.items())]
        text = f"{self._named(call.function)}({', '.join(words)})"
        if call.single:
            self._lines.append(f"v{call.written[0][1]} = {text}")
        else:
            self._lines.append(f"results = {text}")
            self._lines += [f"v{slot} = results[{place}]" for place, slot in call.written]
            self._lines.append("results = None")

    def free(self, slots: Sequence[int]) -> None:
        """Values that are not read again."""
        if slots:
            self._lines.append(f"{' = '.join(f'v{slot}' for slot in slots)} = None")

    def function(self, result: int) -> Callable[[Tensor], Tensor]:
        """The function, which returns one of the values."""
        lines = [f"def run(v{_ZERO}):", *self._lines, f"return v{result} + v{_ZERO}"]
        exec("\n    ".join(lines), self._names)
        return torch.no_grad()(self._names["run"])

    def _word(self, value: Any) -> str:
        if isinstance(value, _Slot):
            return f"v{value.number}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._word, value))}]"
        if value is None or type(value) in (int, bool):
            return repr(value)
        return self._named(value)

    def _named(self, value: Any) -> str:
        name = f"c{len(self._names)}"
        self._names[name] = value
        return name
