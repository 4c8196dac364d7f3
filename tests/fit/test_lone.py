"""A lone step, by this process alone; `test_distributed` has several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import amortized as am
from amortized.fit.distributed import Group
from tests.fit import tiny
from tests.fit.harness import doubled, pair


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process that does the same."""
    monkeypatch.setattr("amortized.fit.lone.current_group", lambda: Group(0, 2))
    monkeypatch.setattr(Group, "add_up", doubled)
    monkeypatch.setattr(Group, "gathered", lambda self, value: [value, value])
    monkeypatch.setattr(Group, "copy_first", lambda self, tensors: None)
    yield


@pytest.mark.usefixtures("twins")
def test_processes_with_the_same_noise_are_told() -> None:
    svi = pair(compile="off")
    with pytest.warns(am.CheckWarning, match="processes draw the same noise: .*get_rank"):
        svi.step(tiny.data(6))
    svi.step(tiny.data(6))  # once


@pytest.mark.usefixtures("twins")
def test_a_loss_that_is_not_finite_names_the_step() -> None:
    svi = pair(compile="off")
    with pytest.warns(am.CheckWarning, match="noise"):
        svi.step(tiny.data(6))
    before = svi.params()
    with pytest.raises(am.NonFiniteError, match="step 2: the loss is nan"):
        svi.step(torch.full((6,), float("nan")))
    assert svi.params() == before


def test_alone_nothing_is_reduced() -> None:
    svi = pair(compile="off")
    svi.step(tiny.data(6))
    assert svi._stepper.reduction is None and not dist.is_initialized()
