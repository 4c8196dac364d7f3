"""How much memory one evaluation holds at most."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
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


@final
class _Peak(TorchDispatchMode):
    """Follows the storages of new tensors, those that a backward pass keeps included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, for seconds, only to keep it out of this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call."""
        result = func(*args, **(kwargs or {}))
        # a view, or what was changed in place, takes nothing
        given = {_key(value) for value in tree_leaves((args, kwargs or {}))}
        for value in tree_leaves(result):
            key = _key(value)
            if key is not None and key not in given and key not in self._alive:
                self._add(key, value.untyped_storage())
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def _key(value: Any) -> int | None:
    """The storage; None for what is no tensor, or a sparse one."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return value.untyped_storage()._cdata
