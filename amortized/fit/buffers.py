"""What a run leaves behind besides gradients: running means, and what estimators remember."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Copy = tuple[nn.Module, str, Tensor, int, Tensor | None]
"""Module, name, the buffer, its version, and its value if the buffer is known to move."""


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
