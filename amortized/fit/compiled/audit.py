"""Whether a replay still does what the programs do: both from one generator state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from amortized.fit.compiled.capture import CaptureError, StepGraph, StepInputs
from amortized.fit.rng import restore_torch, torch_state

# the replays before which a step is compared, and then every thousandth
_FIRST: Final = (0, 1, 10, 100)
_EVERY: Final = 1000
# compiled kernels differ by rounding, and a draw may then fall on the other side of a threshold:
# a true difference shows every time
_TRIALS: Final = 3


def is_due(replays: int) -> bool:
    """Whether the next replay is one of those that are compared.

    >>> [n for n in range(3000) if is_due(n)]
    [0, 1, 10, 100, 1000, 2000]
    """
    return replays in _FIRST or (replays > 0 and replays % _EVERY == 0)


def audit(
    graph: StepGraph,
    replay: Callable[..., list[Tensor]],
    inputs: StepInputs,
    *,
    exact: bool,
) -> None:
    """Compares a replay with the programs on one batch; everything is put back.

    Some kernels of GPUs add up in another order each time: where the eager step does not repeat
    itself, rounding may differ there too.

    Args:
        graph: the captured step.
        replay: what stands for it: a replay (``exact``: bit for bit) or a compiled step.
        inputs: the batch.
        exact: whether all bits must agree.

    Raises:
        CaptureError: they differ, or the programs draw from Python's or numpy's generator.
    """
    state = torch_state()
    try:
        if exact and _agrees(graph, replay, inputs, exact=True):
            return
        rounded = not exact or _differs_from_itself(graph, inputs)
        for _ in range(_TRIALS if rounded else 0):
            if _agrees(graph, replay, inputs, exact=False):
                return
            _draw_on(inputs)  # another trial has other draws
    finally:
        restore_torch(state)
    if not exact:
        raise CaptureError(
            "its compiled numbers differ from the eager step's by more than rounding: use "
            "compile='graph'"
        )
    raise CaptureError(
        "its replay differs from the eager step from the same generator state: the programs depend "
        "on something that a capture holds fixed, such as a number that is annealed out of sight, "
        "state that is no buffer, or hooks"
    )


def _differs_from_itself(graph: StepGraph, inputs: StepInputs) -> bool:
    """Whether a GPU computes the eager step otherwise each time."""
    on_gpu = any(leaf.is_cuda for leaf in inputs.leaves)
    return on_gpu and not _agrees(graph, graph.eager, inputs, exact=True)


def _draw_on(inputs: StepInputs) -> None:
    """Moves the generators by one draw."""
    for device in {torch.device("cpu"), *(leaf.device for leaf in inputs.leaves)}:
        torch.rand((), device=device)


def _agrees(
    graph: StepGraph, replay: Callable[..., list[Tensor]], inputs: StepInputs, *, exact: bool
) -> bool:
    eager, after = graph.trial(graph.eager, inputs.tensors)
    replayed, after_replay = graph.trial(replay, inputs.tensors)
    if exact and not torch.equal(after, after_replay):
        return False
    largest = max((_scale(gradient) for gradient in graph.gradients_of(eager)), default=0.0)
    return agree(replayed, eager, exact=exact, largest=largest)


def agree(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], *, exact: bool, largest: float = 0.0
) -> bool:
    """Whether two results are the same: bit for bit, or to rounding on the scale of each tensor.

    What cancels to nothing is left with the rounding of what went into it: ``largest`` is the scale
    of that.

    >>> a, b = torch.tensor([1.0, 1e-9]), torch.tensor([1.0, 2e-9])
    >>> agree([a], [b], exact=False), agree([a], [b], exact=True)
    (True, False)
    """
    if [(v.shape, v.dtype) for v in ours] != [(v.shape, v.dtype) for v in theirs]:
        return False
    pairs = zip(ours, theirs, strict=True)
    if exact:
        return all(_identical(a, b) for a, b in pairs)
    return all(_close(a, b, largest) for a, b in pairs)


def _identical(ours: Tensor, theirs: Tensor) -> bool:
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def _close(ours: Tensor, theirs: Tensor, largest: float) -> bool:
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    finite = theirs.isfinite() & ours.isfinite()
    if not _identical(ours[~finite], theirs[~finite]):
        return False
    # sums of many terms of that scale: the square root of the unit of rounding
    unit = torch.finfo(theirs.dtype).eps
    tolerance = _scale(theirs) * unit**0.5 + 100 * unit * largest
    return bool(((ours - theirs)[finite].abs() <= tolerance).all())


def _scale(values: Tensor) -> float:
    """The largest finite number, without its sign."""
    if not values.is_floating_point():
        return 0.0
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
