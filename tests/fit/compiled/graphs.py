"""Small functions as graphs, compared with themselves: bits, generators, memory and state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import amortized as am
from amortized.fit.buffers import MovingBuffers
from amortized.fit.compiled.capture import StepGraph, StepInputs, StepProgram
from amortized.fit.data import batch_length
from amortized.programs.records import DataPlate

Function = Callable[..., Sequence[Tensor]]
Made = tuple[Function, list[Tensor]]
"""A function that returns tensors, and the tensors outside of it that it may change."""


def bits(tensor: Tensor) -> bytes:
    """What stands in memory: NaN and the sign of zero count."""
    return tensor.detach().contiguous().cpu().numpy().tobytes()


def capture(function: Function, state: Sequence[Tensor], inputs: Sequence[Tensor]) -> GraphModule:
    """The graph of a function; what capturing did to state and generators is undone."""
    before, generator = [t.detach().clone() for t in state], torch.get_rng_state()
    graph = make_fx(function)(*[t.clone() for t in inputs])
    restore(state, before)
    torch.set_rng_state(generator)
    return graph


def restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            if bits(tensor) != bits(value):  # constants may be expanded
                tensor.copy_(value)


def seen(step: Function, state: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[object]:
    """Everything that a call can be told by: what it returned, changed, drew and shares."""
    inputs = [t.clone() for t in inputs]
    found = [t.detach() for t in step(*inputs)]
    record: list[object] = [(t.shape, t.stride(), t.dtype, bits(t)) for t in found]
    record += [bits(t) for t in (*state, *inputs)]
    record.append(torch.rand(3).tolist())
    for number, tensor in enumerate(found):  # the caller scales gradients in place
        if tensor.is_floating_point() and 0 not in tensor.stride():
            tensor.mul_(0.5 + number)
    return record + [bits(t) for t in (*found, *state, *inputs)]


def agrees(
    step: Function,
    function: Function,
    state: Sequence[Tensor],
    inputs: Sequence[Tensor],
    calls: int = 3,
) -> None:
    """Asserts that several calls of both, one after another, cannot be told apart."""
    start = [t.detach().clone() for t in state]
    records = []
    for called in (function, step):
        restore(state, start)
        torch.manual_seed(3)
        records.append([seen(called, state, [t + n for t in inputs]) for n in range(calls)])
    restore(state, start)
    assert records[1] == records[0]


def step_graph(svi: am.SVI, batch: Any, **weights: float) -> tuple[StepGraph, StepInputs]:
    """The graph of a pair's step on a batch, and its inputs; nothing has moved."""
    stepper = svi._stepper
    stepper.warm_up(batch)
    data = DataPlate(rows=batch_length(batch))
    inputs = StepInputs(batch, stepper.optimizer.leaves(), data, **weights)
    program = StepProgram(stepper._estimate, stepper.loss.learn, stepper._around)
    buffers = MovingBuffers(stepper.parameters.networks)
    return StepGraph(program, buffers, inputs), inputs
