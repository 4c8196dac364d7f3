"""One sum over the processes: here two that do the same; `test_distributed` has real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from amortized.errors import NonFiniteError, ProgramError, WorkerError
from amortized.fit.buffers import MovingBuffers
from amortized.fit.distributed import Group
from amortized.fit.reduction import Part, Reduction
from tests.fit.harness import doubled


@pytest.fixture(autouse=True)
def twins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The other process sends what this one sends; messages are counted."""
    sent: list[Tensor] = []

    def add_up(self: Group, tensor: Tensor) -> None:
        sent.append(tensor.clone())
        doubled(self, tensor)

    monkeypatch.setattr(Group, "add_up", add_up)
    monkeypatch.setattr(Group, "largest", lambda self, tensor: sent.append(tensor))
    monkeypatch.setattr(Group, "gathered", lambda self, value: [value, value])
    monkeypatch.setattr(Group, "copy_first", lambda self, tensors: None)
    yield sent


def part(module: nn.Module, buffers: MovingBuffers, weight: float) -> Part:
    return Part(list(module.parameters()), lambda: dict(module.named_parameters()), buffers, weight)


def test_one_message_a_step(twins: list[Tensor]) -> None:
    module = nn.Linear(3, 2)
    buffers, reduction = MovingBuffers([module]), Reduction(Group(0, 2))
    reduction.start(part(module, buffers, 0.0))
    for _ in range(3):
        for leaf in module.parameters():
            leaf.grad = torch.ones_like(leaf)
        reduction.had_a_batch = True
        assert reduction.reduce(part(module, buffers, 5.0)) == 10
        assert all(bool((leaf.grad == 2).all()) for leaf in module.parameters())
    assert len(twins) == 3


def test_a_process_without_rows_brings_zeros(twins: list[Tensor]) -> None:
    module = nn.Linear(3, 2)
    buffers, reduction = MovingBuffers([module]), Reduction(Group(0, 2))
    for leaf in module.parameters():
        leaf.grad = torch.ones_like(leaf)  # of an earlier step
    reduction.had_a_batch = True
    assert reduction.reduce(part(module, buffers, 0.0)) == 0
    assert math.isnan(reduction.loss) and not reduction.over
    assert bool((twins[0][4:] == 0).all())
    reduction.reduce(part(module, buffers, 0.0))
    assert reduction.over


def test_batch_norm_has_its_counter_counted_once(twins: list[Tensor]) -> None:
    norm = nn.BatchNorm1d(2)
    buffers, reduction = MovingBuffers([norm]), Reduction(Group(0, 2))
    reduction.start(part(norm, buffers, 0.0))
    before = buffers.copies()
    norm(torch.randn(5, 2))
    buffers.look(before)
    moved = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    reduction.reduce(part(norm, buffers, 5.0))
    for name, buffer in norm.named_buffers():
        assert torch.allclose(buffer, moved[name])
    assert moved["num_batches_tracked"].item() == 1
    assert len(twins) == 3  # that buffers move, the sum, and counters apart


def test_a_new_parameter_is_compared_before_it_counts(twins: list[Tensor]) -> None:
    module = nn.ParameterList([torch.zeros(2)])
    buffers, reduction = MovingBuffers([module]), Reduction(Group(0, 2))
    reduction.start(part(module, buffers, 0.0))
    module.append(torch.zeros(3))
    for leaf in module.parameters():
        leaf.grad = torch.ones_like(leaf)
    reduction.had_a_batch = True
    assert reduction.reduce(part(module, buffers, 1.0)) == 2
    assert all(leaf.grad is not None and leaf.grad.eq(2).all() for leaf in module.parameters())
    assert len(twins) == 2  # the first said that something changed


@pytest.mark.parametrize("error", [NonFiniteError("the loss is nan"), OSError("full")])
def test_an_error_is_raised_after_it_was_told(error: Exception, twins: list[Tensor]) -> None:
    module = nn.Linear(3, 2)
    buffers, reduction = MovingBuffers([module]), Reduction(Group(0, 2))
    reduction.error = error
    with pytest.raises(type(error)):
        reduction.reduce(part(module, buffers, 0.0))
    assert reduction.error is None and len(twins) == 1


def test_the_signal_of_any_process_is_known_to_all() -> None:
    module = nn.Linear(3, 2)
    received: list[int | None] = [None]
    reduction = Reduction(Group(1, 2), lambda: received[0])
    buffers = MovingBuffers([module])
    reduction.reduce(part(module, buffers, 0.0))
    assert reduction.signal is None
    received[0] = 7
    reduction.reduce(part(module, buffers, 0.0))
    assert reduction.signal == 7


def test_other_parameters_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(3, 2)
    buffers, reduction = MovingBuffers([module]), Reduction(Group(0, 2))
    others = [("bias", (5,), "float32")]

    def gathered(self: Group, value: tuple[object, ...]) -> list[object]:
        return [value, (others, *value[1:])]

    monkeypatch.setattr(Group, "gathered", gathered)
    with pytest.raises(ProgramError, match="'weight' is 2x3 float32 in process 0 and missing in"):
        reduction.start(part(module, buffers, 0.0))


def test_a_lost_connection_leaves_buffers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm1d(2)
    buffers, reduction = MovingBuffers([norm]), Reduction(Group(0, 2))

    def broken(self: Group, tensor: Tensor) -> None:
        raise WorkerError("gone")

    monkeypatch.setattr(Group, "add_up", broken)
    before = [buffer.clone() for buffer in norm.buffers()]
    with pytest.raises(WorkerError):
        reduction.reduce(part(norm, buffers, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
