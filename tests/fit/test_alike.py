"""Processes that are not alike are refused, each by what differs; two real ones, and fakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import amortized as am
from amortized.errors import DataError, ProgramError, UsageError
from amortized.fit import alike
from amortized.fit.data import as_batches
from amortized.fit.distributed import Group
from amortized.fit.shards import sharded
from tests.fit import tiny
from tests.fit.harness import pair
from tests.fit.processes.start import together

SAID = {
    "checkpoints": ("UsageError", "callbacks: ModelCheckpoint in process 0 and no ModelCheck"),
    "val": ("DataError", "val: a DataLoader in process 0 and nothing in process 1"),
    "shards": ("DataError", "train: the digest of row 0 is "),
    "unequal": ("DataError", "train: the number of rows is 25 in process 0 and 11 in process 1"),
    "rate": ("UsageError", "lr of guide: 0.1 in process 0 and 0.2 in process 1"),
    "steps": ("UsageError", "steps: 5 in process 0 and 0 in process 1"),
    "drift": ("ProgramError", "parameter 'store.loc': after epoch 1 it is no longer the same"),
    "free bits": ("UsageError", "ELBO(num_particles=1, kl='sample', free_bits={'*': 1.0}) among 2"),
    "totals": ("ProgramError", "no plate holds the observations"),
}


def test_two_processes_hear_what_is_not_alike(tmp_path: Path) -> None:
    found = together(2, tmp_path, "refusals", "caught", "same_history")
    for of in found["refusals"]:
        for name, (kind, begin) in SAID.items():
            assert of[name][0] == kind and of[name][1].startswith(begin), of[name]
    first, second = (of["batch of a group"][1] for of in found["refusals"])
    assert first.startswith("epoch 1, batch 4, step 1: batch 3: the loss is nan")
    assert second.startswith("epoch 1, batch 4, step 1: process 0: batch 3: the loss is nan")

    # no policy for steps goes on after an error of a callback
    assert [of["callback"] for of in found["refusals"]] == [
        ("WorkerError", "process 1 failed: WorkerError: a callback of process 1 failed: mine"),
        ("WorkerError", "a callback of process 1 failed: mine"),
    ]

    # a callback that fails in one ends training in both, who then train again
    other, own = found["caught"]
    sentence = "process 1 failed: ZeroDivisionError: a callback"
    assert other == [("WorkerError", sentence), ("", "")] * 4
    assert own == [("ZeroDivisionError", "a callback"), ("", "")] * 4

    one, two = found["same_history"]
    assert one["notices"] == two["notices"] and len(one["notices"]) == 2
    assert one["notices"][0].startswith("process 1: epoch 1, validation batch 2: ")
    assert one["numbers"].keys() == two["numbers"].keys()
    assert all(
        torch.equal(one["numbers"][name].nan_to_num(7.0), two["numbers"][name].nan_to_num(7.0))
        for name in one["numbers"]
    )
    assert one["checkpoints"] == ["step-00000000"]
    for own in (one, two):  # a sampler within a sampler shuffles anew in each pass
        assert not torch.equal(torch.cat(own["batches"][:3]), torch.cat(own["batches"][3:]))
    rows = torch.cat([torch.cat(own["batches"][:3]) for own in (one, two)])
    assert len(rows.unique(dim=0)) == 36
    (warned,) = one["warnings"]
    assert "of 37 rows for 2 processes repeats 1 of them" in warned and not two["warnings"]


# --- one process ----------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the second of two processes says."""
    others: list[Any] = []
    monkeypatch.setattr(Group, "gathered", lambda self, value: [value, *others])
    monkeypatch.setattr(Group, "copy_first", lambda self, tensors: None)
    monkeypatch.setattr(Group, "raise_for", lambda self, error: None)
    return others


def test_alone_nothing_is_compared(told: list[Any]) -> None:
    told.append({})
    alike.refuse_other_data(Group(), "train", as_batches(torch.zeros(3)))
    alike.refuse_unshared(Group(), am.ELBO(free_bits=0.5))


@pytest.mark.parametrize("row", [0, 4, 8])
def test_data_are_told_apart_by_three_rows(row: int, told: list[Any]) -> None:
    x = torch.arange(18.0).view(9, 2)
    y = x.clone()
    y[row, 1] += 1e-6
    batches = [sharded(as_batches((values, values), 4), Group(0, 2)) for values in (x, y)]
    told.append(alike._about(batches[0]))
    alike.refuse_other_data(Group(0, 2), "train", batches[0])
    told[:] = [alike._about(batches[1])]
    with pytest.raises(DataError, match=f"^val: the digest of row {row} is [0-9a-f]{{8}}… in"):
        alike.refuse_other_data(Group(0, 2), "val", batches[0])
    told[:] = [alike._about(None)]
    with pytest.raises(DataError, match=r"^val: the number of rows is 9 in process 0 and None in"):
        alike.refuse_other_data(Group(0, 2), "val", batches[0])


@pytest.mark.parametrize("free", [{"z": 0.0}, 0.0])
def test_no_free_bits_are_a_sum(free: Any) -> None:
    alike.refuse_unshared(Group(0, 2), am.ELBO(free_bits=free, beta=2.0))
    with pytest.raises(UsageError, match="train in one process"):
        alike.refuse_unshared(Group(0, 2), am.ELBO(free_bits={"z": 0.5}))


def test_objects_are_compared_by_kind_and_numbers_by_value() -> None:
    assert alike._plain(torch.Generator()) == alike._plain(torch.Generator()) == "Generator"
    assert alike._plain((0.9, torch.tensor(0.5))) == "(0.9, 0.5)" != alike._plain((0.9, 0.25))


def test_rounding_is_no_drift() -> None:
    x = torch.linspace(-1, 1, 100)
    ours = alike.sums_of({"w": x, "none": torch.zeros(0)})
    assert list(ours) == ["w"]
    assert alike.sums_of({"c": torch.tensor([1 + 2j, -3j])}) == {"c": (0.0, 6.0)}
    alike.refuse_drift([ours, alike.sums_of({"w": x * (1 + 1e-6)})], 1)
    for other in (x + 0.01, x * torch.nan):
        with pytest.raises(ProgramError, match="'w': after epoch 3"):
            alike.refuse_drift([ours, alike.sums_of({"w": other})], 3)
    lost = alike.sums_of({"w": x * torch.nan})
    alike.refuse_drift([lost, lost], 1)  # which training itself has refused, or was told to skip


def test_a_state_of_the_optimizer_that_others_lack_is_refused(told: list[Any]) -> None:
    svi = pair(compile="off")
    svi._stepper.warm_up(tiny.data(4))
    told.append(alike._about_optimizer(svi._stepper)[0])
    alike.share_optimizer(Group(0, 2), svi._stepper)
    svi.step(tiny.data(4))
    svi._stepper.steps = 0
    with pytest.raises(UsageError, match="entries of the optimizer's state: "):
        alike.share_optimizer(Group(0, 2), svi._stepper)
