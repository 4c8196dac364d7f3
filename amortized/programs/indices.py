"""The indices of a plate that is not subsampled: a tensor that iterates over plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor


@final
class AllIndices(Tensor):
    """``arange(n)`` for a whole plate.

    Pyro reads each index of ``for i in pyro.plate(...)`` out of a tensor. That stops a capture, as
    every value read does, though these are known beforehand.
    """

    # what is computed from it is a plain tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __iter__(self) -> Iterator[Any]:
        """Python's numbers."""
        return iter(range(self.shape[0]))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A plain tensor: torch cannot copy a subclass without torch functions."""
        return memo.setdefault(id(self), self.clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a plain tensor, so that files do not name this class."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def all_indices(fn: Any) -> Tensor | None:
    """The indices that Pyro's subsampling statement gives, if it takes every element.

    >>> from pyro.poutine.subsample_messenger import _Subsample
    >>> list(all_indices(_Subsample(3, None))), all_indices(_Subsample(3, 2))
    ([0, 1, 2], None)
    """
    if fn.subsample_size is not None and fn.subsample_size < fn.size:
        return None
    if type(fn.size) is not int or fn.use_cuda:
        return None
    return torch.arange(fn.size, device=fn.device).as_subclass(AllIndices)
