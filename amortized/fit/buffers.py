"""What a run leaves behind besides gradients: running means, and what estimators remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Copy = tuple[nn.Module, str, Tensor, int, Tensor | None]
"""Module, name, the buffer, its version, and its value if the buffer is known to move."""

_BY_ID: Final = ("_moving", "_always")


@final
class MovingBuffers:
    """The buffers of modules; those that runs were seen to move can be put back.

    They are known by module and name: a program may put a new tensor in the place of an old one.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        every = {id(part): part for module in modules for part in module.modules()}
        self._places = [(module, name) for module in every.values() for name in module._buffers]
        # until one run was seen, any of them may move
        self._moving = {(id(module), name) for module, name in self._places}
        # torch moves these without a trace, and they may be in eval mode at first
        self._always = {
            (id(module), name) for module, name in self._places if isinstance(module, _NormBase)
        }
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        """Modules have other identities in a copy: places go by number."""
        return {**vars(self), **{name: self._numbers(getattr(self, name)) for name in _BY_ID}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores from a copy."""
        vars(self).update(state)
        for name in _BY_ID:
            places = [self._places[number] for number in state[name]]
            setattr(self, name, {(id(module), buffer) for module, buffer in places})

    def _numbers(self, keys: set[tuple[int, str]]) -> list[int]:
        return [i for i, (m, name) in enumerate(self._places) if (id(m), name) in keys]

    def named(self) -> list[tuple[str, Tensor]]:
        """All of them that are tensors, with the names that their modules have for them."""
        found = ((name, module._buffers.get(name)) for module, name in self._places)
        return [(name, buffer) for name, buffer in found if buffer is not None]

    def moving(self) -> set[int] | None:
        """The numbers of those that runs were seen to move; None: no run was seen."""
        return set(self._numbers(self._moving)) if self._looked else None

    def buffer(self, number: int) -> Tensor | None:
        """What is there now."""
        module, name = self._places[number]
        return module._buffers.get(name)

    def copies(self) -> list[Copy]:
        """What they hold now; a value only of those that move, as others may be large."""
        found: list[Copy] = []
        for module, name in self._places:
            buffer = module._buffers.get(name)
            if buffer is not None:
                moves = (id(module), name) in self._moving
                value = buffer.clone() if moves else None
                found.append((module, name, buffer, buffer._version, value))
        return found

    @contextmanager
    def kept_on(self, error: type[Exception]) -> Iterator[list[Copy]]:
        """Around a run: those that move are put back where it ends with such an error."""
        before = self.copies()
        try:
            yield before
        except error:
            put_back(before)
            raise

    def values(self) -> list[Tensor]:
        """Clones of all of them."""
        found = (module._buffers.get(name) for module, name in self._places)
        return [buffer.clone() for buffer in found if buffer is not None]

    def look(self, before: Iterable[Copy]) -> None:
        """Learns from a run which of them it moved."""
        moved = {(id(copy[0]), copy[1]) for copy in before if _moved(*copy)}
        self._moving = self._always | moved | (self._moving if self._looked else set())
        self._looked = True


def _moved(
    module: nn.Module, name: str, buffer: Tensor, version: int, value: Tensor | None
) -> bool:
    if module._buffers.get(name) is not buffer or buffer._version != version:
        return True
    return value is not None and not torch.equal(buffer, value)


def put_back(copies: Iterable[Copy]) -> None:
    """Gives buffers the values that were copied."""
    with torch.no_grad():
        for module, name, buffer, _, value in copies:
            if value is not None:
                module._buffers[name] = buffer.copy_(value)
