"""One sum over the processes a step: gradients, buffers that moved, and how each process fares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from amortized.errors import ProgramError
from amortized.fit.buffers import MovingBuffers
from amortized.fit.distributed import Group

# How a process fares; in its slot, beside whether it had a batch and which signal it received.
_WELL, _FAILED, _CHANGED = range(3)
_HAD_A_BATCH: Final = 4
_SIGNAL: Final = 8

# weight and loss, before the slots of the processes and the flags of the parameters
_SLOTS: Final = 2

Kind = tuple[torch.dtype, torch.device]
Form = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype of a tensor."""


@dataclass(frozen=True)
class Part:
    """What one process brings: the sum of its weighted gradients in its parameters, and buffers.

    Args:
        leaves: the parameters, in the order of the optimizer.
        tensors: gives every parameter and buffer by name.
        buffers: those that runs move.
        weight: what the gradients were weighted with: rows; 0: there are none.
    """

    leaves: Sequence[Tensor]
    tensors: Callable[[], Mapping[str, Tensor]]
    buffers: MovingBuffers
    weight: float


@final
class Reduction:
    """Makes the gradients of all processes those of each, weighted by their rows.

    Each process estimates the loss of all data from its rows, ``loss_r``, so that ``sum_r n_r / n
    loss_r`` is the loss of one process with all ``n`` rows: global latents count once, and a
    process without rows brings zeros. Everything goes in one message for each dtype.

    Attributes:
        group: the processes.
        error: what went wrong in this one since the last reduction: it then brings zeros, and
            `reduce` raises in every process.
        loss: of its rows, times their number; after a reduction the mean over all rows.
        had_a_batch: whether this process had one since the last reduction.
        over: whether none had one at the last reduction.
        signal: the largest that a process had received at the last reduction.
    """

    def __init__(self, group: Group, received: Callable[[], int | None] = lambda: None) -> None:
        self.group = group
        self.error: Exception | None = None
        self.loss, self.had_a_batch, self.over = 0.0, False, False
        self.signal: int | None = None
        self._received = received
        self._layout: _Layout | None = None
        self._known: set[str] = set()

    def start(self, part: Part) -> None:
        """Gives every process the parameters and buffers of the first.

        Raises:
            ProgramError: they are not the same ones everywhere.
        """
        tensors = part.tensors()
        places = {id(tensor): name for name, tensor in tensors.items()}
        forms = [_form(name, tensor) for name, tensor in tensors.items()]
        leaves = [_form(places.get(id(leaf), "?"), leaf) for leaf in part.leaves]
        buffers = [_form(*named) for named in part.buffers.named()]
        told = self.group.gathered((forms, leaves, buffers, part.buffers.moving()))
        for rank, (others, *orders, _) in enumerate(told):
            _refuse_others(forms, others, self.group.rank, rank)
            if orders != [leaves, buffers]:
                raise ProgramError(
                    f"processes {self.group.rank} and {rank} have the same parameters in another "
                    "order; expected programs that declare them alike: sort what they loop over"
                )
        fresh = [tensor for name, tensor in tensors.items() if name not in self._known]
        self.group.copy_first(fresh)
        self._known |= tensors.keys()
        # what no run has been seen to move may be moved by another process
        moving = set().union(*(found for *_, found in told if found is not None))
        self._layout = _Layout(part, moving, self.group.size)

    def reduce(self, part: Part) -> float:
        """Adds up, and returns the sum of the weights.

        Gradients are then the sums of weighted ones, and buffers their weighted mean (counters the
        largest), the same in every process.

        Raises:
            Exception: what went wrong in this process.
            NonFiniteError: numbers were not finite in another; nothing has moved.
            WorkerError: another process failed.
            ProgramError: a process has declared a parameter that others lack.
        """
        if self._layout is None:
            self.start(part)
        while True:
            layout, changed = self._layout, not (self._layout and self._layout.serves(part))
            if layout is None:
                raise ProgramError("parameters were not compared before the first reduction")
            header = self._exchange(layout, part, changed=changed)
            slots = [int(slot) for slot in header[_SLOTS : _SLOTS + self.group.size]]
            if any(slot % _HAD_A_BATCH == _FAILED for slot in slots):
                error, self.error = self.error, None
                self._clear(slots)
                self.group.raise_for(error)
            if not any(slot % _HAD_A_BATCH == _CHANGED for slot in slots):
                break
            self.start(part)
        weight = header[0]
        if weight:
            layout.give_back(part, header[_SLOTS + self.group.size :], weight, self.group)
        self.loss = header[1] / weight if weight else math.nan
        self._clear(slots)
        return weight

    def _exchange(self, layout: _Layout, part: Part, *, changed: bool) -> list[float]:
        """One sum; the header of it. A process that failed or changed brings zeros."""
        state = _FAILED if self.error is not None else _CHANGED if changed else _WELL
        slots = [0.0] * self.group.size
        slots[self.group.rank] = float(
            state + _HAD_A_BATCH * self.had_a_batch + _SIGNAL * (self._received() or 0)
        )
        well = state == _WELL
        has = [well and part.weight > 0 and leaf.grad is not None for leaf in part.leaves]
        if changed:
            has = [False] * layout.count
        about = [part.weight, self.loss] if well else [0.0, 0.0]
        layout.fill(part if well else None, [*about, *slots, *map(float, has)], has)
        for flat in layout.flats:
            self.group.add_up(flat)
        return layout.header.tolist()

    def _clear(self, slots: Sequence[int]) -> None:
        """Ready for the next step, knowing what the others said."""
        signals = [slot // _SIGNAL for slot in slots]
        self.signal = max(signals) or None
        self.over = not any(slot // _HAD_A_BATCH % 2 for slot in slots)
        self.had_a_batch = False


@final
class _Layout:
    """Where parameters and buffers lie in the messages, and the memory of these."""

    def __init__(self, part: Part, moving: set[int], size: int) -> None:
        self._leaves, self._buffers, self._moving = list(part.leaves), part.buffers, moving
        self.count = len(self._leaves)
        held = [(number, part.buffers.buffer(number)) for number in sorted(moving)]
        floating = [(n, b) for n, b in held if b is not None and b.is_floating_point()]
        self._counters = [n for n, b in held if b is not None and not b.is_floating_point()]
        tensors = [*self._leaves, *(buffer for _, buffer in floating)]
        precise = [t for t in tensors if t.dtype in (torch.float32, torch.float64)]
        # counts of rows and flags must be exact
        device = tensors[0].device if tensors else torch.device("cpu")
        main = (precise[0].dtype, precise[0].device) if precise else (torch.float32, device)
        header = _SLOTS + size + self.count
        sizes: dict[Kind, int] = {main: header}
        places: list[tuple[Kind, int]] = []
        for tensor in tensors:
            kind = tensor.dtype, tensor.device
            places.append((kind, sizes.setdefault(kind, 0)))
            sizes[kind] += tensor.numel()
        memory = {kind: torch.zeros(n, dtype=kind[0], device=kind[1]) for kind, n in sizes.items()}
        self.flats, self.header = list(memory.values()), memory[main][:header]
        views = [
            memory[kind][start : start + tensor.numel()].view(tensor.shape)
            for tensor, (kind, start) in zip(tensors, places, strict=True)
        ]
        self._views = views[: self.count]
        self._means = [(n, v) for (n, _), v in zip(floating, views[self.count :], strict=True)]

    def serves(self, part: Part) -> bool:
        """Whether a part has these parameters, and moves no other buffers."""
        leaves = self._leaves
        if part.buffers is not self._buffers or len(part.leaves) != len(leaves):
            return False
        if any(ours is not theirs for ours, theirs in zip(leaves, part.leaves, strict=True)):
            return False
        moving = part.buffers.moving()
        return moving is None or moving <= self._moving

    @torch.no_grad()
    def fill(self, part: Part | None, header: list[float], has: Sequence[bool]) -> None:
        """Writes what a process brings; None: nothing."""
        if part is None or part.weight == 0:
            for flat in self.flats:
                flat.zero_()
        else:
            for leaf, view, there in zip(part.leaves, self._views, has, strict=True):
                if there and leaf.grad is not None:
                    view.copy_(leaf.grad)
                else:
                    view.zero_()
            for number, view in self._means:
                torch.mul(self._buffer(number), part.weight, out=view)
        self.header.copy_(torch.tensor(header, dtype=self.header.dtype))

    @torch.no_grad()
    def give_back(self, part: Part, has: Sequence[float], weight: float, group: Group) -> None:
        """The sums as gradients, and the means as buffers."""
        for leaf, view, there in zip(part.leaves, self._views, has, strict=True):
            leaf.grad = view if there else None
        for number, view in self._means:
            torch.div(view, weight, out=self._buffer(number))
        if self._counters:
            counters = [self._buffer(number) for number in self._counters]
            flat = torch.cat([counter.reshape(-1).to(torch.int64) for counter in counters])
            group.largest(flat)
            parts = flat.split([counter.numel() for counter in counters])
            for counter, found in zip(counters, parts, strict=True):
                counter.copy_(found.view(counter.shape))

    def _buffer(self, number: int) -> Any:
        return self._buffers.buffer(number)


def _form(name: str, tensor: Tensor) -> Form:
    return name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _refuse_others(ours: Sequence[Form], theirs: Sequence[Form], rank: int, other: int) -> None:
    """Raise for parameters that are not alike in two processes."""
    mine, others = ({name: form for name, *form in forms} for forms in (ours, theirs))
    for name in [*mine, *others]:
        if mine.get(name) == others.get(name):
            continue
        found = [
            f"{'x'.join(map(str, form[0])) or 'a scalar'} {form[1]}" if form else "missing"
            for form in (mine.get(name), others.get(name))
        ]
        raise ProgramError(
            f"parameter {name!r} is {found[0]} in process {rank} and {found[1]} in process "
            f"{other}; expected the same parameters in all of them: declare it in every process at "
            "the first step, whatever the rows are"
        )
