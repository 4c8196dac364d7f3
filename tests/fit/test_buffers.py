import copy

import pytest
import torch
from torch import nn

from amortized.fit.buffers import MovingBuffers, put_back


class Counter(nn.Module):
    """One buffer that is written to, one that is replaced, one that stays."""

    written: torch.Tensor
    replaced: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("written", "replaced", "still"):
            self.register_buffer(name, torch.zeros(3))
        self.register_buffer("nothing", None)

    def forward(self) -> None:
        self.written += 1
        self.replaced = self.replaced + 1


def values(module: nn.Module) -> dict[str, list[float]]:
    return {name: buffer.tolist() for name, buffer in module.named_buffers()}


def test_what_a_run_moved_is_put_back() -> None:
    counter = Counter()
    buffers = MovingBuffers([nn.Sequential(counter), counter])
    before = buffers.copies()
    assert len(before) == 3
    counter()
    put_back(before)
    assert set(map(tuple, values(counter).values())) == {(0.0, 0.0, 0.0)}


def test_only_what_moves_is_copied_after_the_first_run() -> None:
    counter = Counter()
    buffers = MovingBuffers([counter])
    before = buffers.copies()
    counter()
    buffers.look(before)
    copied = {name for _, name, _, _, value in buffers.copies() if value is not None}
    assert copied == {"written", "replaced"}


def test_what_moves_later_is_copied_from_then_on() -> None:
    counter = Counter()
    buffers = MovingBuffers([counter])
    buffers.look(buffers.copies())
    before = buffers.copies()
    assert all(value is None for *_, value in before)
    counter()
    buffers.look(before)
    before = buffers.copies()
    counter()
    buffers.look(before)
    put_back(before)
    assert values(counter)["written"] == values(counter)["replaced"] == [1.0] * 3


def test_what_moved_once_stays_watched() -> None:
    """A branch need not be taken at every run."""
    counter = Counter()
    buffers = MovingBuffers([counter])
    for taken in (True, False):
        before = buffers.copies()
        if taken:
            counter()
        buffers.look(before)
    before = buffers.copies()
    counter()
    put_back(before)
    assert values(counter)["written"] == values(counter)["replaced"] == [1.0] * 3


@pytest.mark.parametrize("starts", [True, False], ids=["train mode first", "eval mode first"])
def test_batch_norm_is_always_watched(starts: bool) -> None:
    """Torch moves its means without a trace in their versions."""
    norm = nn.BatchNorm1d(2).train(starts)
    buffers = MovingBuffers([norm])
    before = buffers.copies()
    norm(torch.randn(4, 2))
    buffers.look(before)
    norm.train()
    wanted, before = values(norm), buffers.copies()
    norm(torch.full((4, 2), torch.nan))
    assert torch.isnan(norm.running_mean).all()  # pyright: ignore
    put_back(before)
    assert values(norm) == wanted


def test_a_module_that_moved_to_other_tensors_is_followed() -> None:
    """As by module.to(device)."""
    counter = Counter()
    buffers = MovingBuffers([counter])
    before = buffers.copies()
    counter()
    buffers.look(before)
    counter.double()
    before = buffers.copies()
    counter()
    put_back(before)
    assert values(counter)["written"] == [1.0] * 3 and counter.written.dtype == torch.float64


def test_a_copy_knows_its_own_modules() -> None:
    """What moves is known by the identity of modules, and those of a copy are others."""
    pair = nn.ModuleDict({"counter": Counter(), "norm": nn.BatchNorm1d(3)})
    buffers = MovingBuffers([pair])
    before = buffers.copies()
    pair["counter"]()
    buffers.look(before)
    twin, modules = copy.deepcopy((buffers, pair))
    copied = {(id(m), name) for m, name, _, _, value in twin.copies() if value is not None}
    counter, norm = modules["counter"], modules["norm"]
    names = ("running_mean", "running_var", "num_batches_tracked")
    expected = {(id(counter), "written"), (id(counter), "replaced")}
    assert copied == expected | {(id(norm), name) for name in names}
