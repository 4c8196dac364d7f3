"""The processes that train together: what they tell each other, in a few collective calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from amortized.errors import NonFiniteError, WorkerError

T = TypeVar("T")
# among the attributes of an error that all processes know of
_SHARED: Final = "_shared_by_all"


@final
@dataclass(frozen=True)
class Group:
    """The processes of a training, of which this one has the number ``rank``; alone, it is one.

    Each method but `seed` is a collective call: every process must make it, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and lines."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """The sum over the processes, in place: the same bits in each."""
        with _connected(self):
            dist.all_reduce(tensor)

    def largest(self, tensor: Tensor) -> None:
        """The largest of each element, in place."""
        with _connected(self):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """The values of the first process, in place; one message for each dtype and device."""
        kinds = {(tensor.dtype, tensor.device): None for tensor in tensors}
        for kind in () if self.alone else kinds:
            same = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
            # bool is not reduced or sent by every backend
            sent = torch.uint8 if kind[0] is torch.bool else kind[0]
            flat = torch.cat([tensor.detach().reshape(-1).to(sent) for tensor in same])
            with _connected(self):
                dist.broadcast(flat, 0)
            with torch.no_grad():
                parts = flat.split([tensor.numel() for tensor in same])
                for tensor, part in zip(same, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def gathered(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        with _connected(self):
            dist.all_gather_object(found, value)
        return found

    def first(self, value: T) -> T:
        """The value that the first process has."""
        if self.alone:
            return value
        box = [value if self.writes else None]
        with _connected(self):
            dist.broadcast_object_list(box, 0)
        return box[0]  # pyright: ignore[reportReturnType]

    def agreed(self, function: Callable[[], T]) -> T:
        """What the function gives in this process, if it succeeds in every one.

        Raises:
            Exception: what it raised in this process.
            NonFiniteError: numbers were not finite in another.
            WorkerError: another failed.
        """
        if self.alone:
            return function()
        try:
            found = function()
        except Exception as error:
            self.raise_for(error)
            raise
        self.raise_for(None)
        return found

    def once(self, function: Callable[[], T]) -> T:
        """What the function gives in the first process, which alone calls it.

        Raises:
            Exception: what it raised there; `WorkerError` in the others.
        """
        if self.alone:
            return function()
        return self.first(self.agreed(function if self.writes else lambda: None))  # type: ignore

    def raise_for(self, error: Exception | None) -> None:
        """Ends this call with an error if one of the processes has one; None: not this one."""
        told = self.gathered(None if error is None else _said(error))
        others = ((rank, said) for rank, said in enumerate(told) if said is not None)
        rank, said = next(others, (0, None))
        if error is None and said is not None:
            non_finite, sentence, table = said
            if non_finite:
                error = NonFiniteError(f"process {rank}: {sentence}", table)
            else:
                error = WorkerError(f"process {rank} failed: {sentence}", told=True)
        if error is not None:
            vars(error)[_SHARED] = True
            raise error

    def seed(self, *parts: int) -> int:
        """A seed of this process's own, determined by the parts."""
        return int(np.random.SeedSequence([*parts, self.rank]).generate_state(1)[0])


def is_shared(error: Exception) -> bool:
    """Whether every process has been told of an error, and raises one at the same place."""
    return _SHARED in vars(error)


def current_group() -> Group:
    """The processes of ``torch.distributed`` if it is initialized, else this process alone.

    >>> current_group().alone
    True
    """
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def _said(error: Exception) -> tuple[bool, str, str]:
    """What another process is told of an error."""
    non_finite = isinstance(error, NonFiniteError)
    sentence = str(error.args[0]) if non_finite else f"{type(error).__name__}: {error}"
    return non_finite, sentence, getattr(error, "table", "")


@contextmanager
def _connected(group: Group) -> Iterator[None]:
    """What a backend says of a connection that broke is of little use."""
    try:
        yield
    except RuntimeError as error:
        first = [*str(error).splitlines(), type(error).__name__][0]
        first = re.sub(r"^\[[^]]*\] ?|\. .*$", "", first)  # a place in the source, and advice
        raise WorkerError(
            f"process {group.rank} of {group.size} cannot reach the others any more: one has ended "
            "(what it said itself tells why), its network has failed, or it has made other calls "
            "than this one and they waited for each other; start all of them again, with "
            f"resume_from= or --resume to go on from the last checkpoint ({first})"
        ) from error
