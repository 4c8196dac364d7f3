"""New memory of a run, and how much of it one evaluation holds at most."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(evaluate: Callable[[], object]) -> int:
    """The bytes of all new tensors that are alive at the same time, at most.

    >>> peak_bytes(lambda: torch.zeros(5, 2).exp().sum())
    80
    """
    with _Peak() as peak:
        evaluate()
    return peak.bytes


class NewMemory(TorchDispatchMode, ABC):
    """Watches a run for storages that it makes: a view takes nothing, nor does a write in place."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, in seconds, only to keep it out of this mode."""
        return False

    @abstractmethod
    def add(self, storage: UntypedStorage) -> None:
        """A call made it; the same one may come again."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call."""
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs or {}))}
        for storage in _storages(result):
            if storage._cdata not in given:
                self.add(storage)
        return result


@final
class _Peak(NewMemory):
    """Follows the storages of new tensors, those that a backward pass keeps included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def add(self, storage: UntypedStorage) -> None:
        """One more, until nobody holds it."""
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def _storages(values: Any) -> list[UntypedStorage]:
    """Of all tensors in it but sparse ones, which have several."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return [t.untyped_storage() for t in tensors if t.layout is torch.strided]
