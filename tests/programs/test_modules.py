"""The modules of programs, however they are held, and their buffers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from amortized.programs.modules import buffers_aside, modules_of
from tests.programs.test_study import Pair, guide, ways_to_hold


def test_modules_are_found_once_with_their_children() -> None:
    module = Pair()
    for program in ways_to_hold(module).values():
        assert {id(m) for m in modules_of(program)} == {id(module), id(module.norm)}
    assert modules_of(guide) == []


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_put_back_as_the_same_tensors(fails: bool) -> None:
    norm = nn.BatchNorm1d(3)
    before = dict(norm.named_buffers())
    try:
        with buffers_aside(partial(norm)):
            norm(torch.randn(5, 3))
            assert norm.num_batches_tracked is not before["num_batches_tracked"]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert all(norm.get_buffer(name) is buffer for name, buffer in before.items())
    assert before["num_batches_tracked"] == 0 and not before["running_mean"].any()
