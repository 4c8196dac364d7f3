"""Two processes do what a single one does with the same batches."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amortized.errors import NonFiniteError, WorkerError
from amortized.fit.distributed import Group, current_group
from tests.fit.processes import jobs, losses, unlike
from tests.fit.processes.start import results, together

SAME = {
    "eager": jobs.eager,
    "captured": jobs.captured,
    "sgd": jobs.sgd,
    "empty_parts": jobs.empty_parts,
    "captured_accumulated": jobs.captured_accumulated,
    "clipped": jobs.clipped,
    "held_out": jobs.held_out,
    "lone_steps": jobs.lone_steps,
    "loaders": jobs.loaders,
    "collated": jobs.collated,
    "mapped": jobs.mapped,
    "skipped": jobs.skipped,
    "rolled_back": jobs.rolled_back,
    "drawn_rows": unlike.drawn_rows,
}
"""Without noise: equal to rounding."""
OTHERS = ("longer_loader", "streams", "noise", "refused", "failed", "late", "late_in_all")
OTHERS += ("resumed", "without_weights", "without_sum", "reduced", "totals", "terminated")
LONG = {"captured_sgd": jobs.captured_sgd, "accumulated": jobs.accumulated}

Results = dict[str, list[Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two processes found: one start for all tests, also where these run side by side."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pair"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            together(2, folder, *SAME, *OTHERS)
            (folder / "done").touch()
    return results(2, folder, *SAME, *OTHERS)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest, in units of the larger of one and the number."""
    assert one.keys() == other.keys()
    # the loss of a skipped step is NaN in both
    assert all(torch.equal(one[name].isnan(), other[name].isnan()) for name in one)
    gaps = [
        ((a - b).abs() / b.abs().clamp(min=1.0)).nan_to_num(0.0).max().item()
        for a, b in ((one[name], other[name]) for name in one)
    ]
    return max(gaps)


def assert_same(found: list[Any], job: Callable[[Path], Any], folder: Path) -> None:
    lone = job(folder)
    for own in found:
        assert difference(own, lone) < 1e-5  # of 100 steps in float32


@pytest.mark.parametrize("name", SAME)
def test_two_processes_are_as_one(pair: Results, name: str, tmp_path: Path) -> None:
    assert_same(pair[name], SAME[name], tmp_path)


@pytest.mark.parametrize("name", ["without_weights", "without_sum"])
def test_the_comparison_finds_a_mistake(pair: Results, name: str, tmp_path: Path) -> None:
    lone = jobs.exact(max_steps=jobs.FEW)
    assert min(difference(own, lone) for own in pair[name]) > 1e-3


@pytest.mark.parametrize("name", [*SAME, "longer_loader", "streams", "late_in_all", "noise"])
def test_processes_have_the_same_parameters_bit_for_bit(pair: Results, name: str) -> None:
    first, second = pair[name]
    named = [key for key in first if "." in key]
    assert named or name == "held_out"
    assert all(torch.equal(first[key], second[key]) for key in named)


@pytest.mark.long
def test_four_processes_are_as_one(tmp_path: Path) -> None:
    every = SAME | LONG
    found = together(4, tmp_path, *every)
    for name, job in every.items():
        assert_same(found[name], job, tmp_path)


def test_a_pass_is_as_long_as_the_longest_loader(pair: Results) -> None:
    for name, steps in (("longer_loader", 15), ("streams", 9)):
        assert [own["steps"].item() for own in pair[name]] == [steps, steps]


def test_the_order_is_shared_and_the_noise_is_not(pair: Results, tmp_path: Path) -> None:
    lone, (first, second) = jobs.noise(tmp_path), pair["noise"]
    splits = first["rows"].split(4), second["rows"].split(4)
    parts = [torch.cat([a, b]) for a, b in zip(*splits, strict=True)]
    assert torch.equal(torch.cat(parts), lone["rows"])
    assert not torch.equal(first["noise"], second["noise"])


def test_a_reduction_weighs_with_rows(pair: Results) -> None:
    for weight, loss, (single, double, idle), buffers in pair["reduced"]:
        assert weight == 4 and loss == 3 / 4
        assert single.tolist() == [1 + 6] * 2  # of processes with 1 and 3 rows
        assert double.tolist() == [1 / 3 + 1] * 3 and idle is None
        assert buffers["average"].tolist() == [1.75, 4.75]
        assert buffers["count"].item() == 2**40 + 2  # the largest, exactly
        assert buffers["still"].item() == 7  # of the first process, from the start


# --- what goes wrong in one process ---------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_all(pair: Results) -> None:
    (kind, sentence), (other, there) = pair["refused"]
    assert kind == other == "NonFiniteError"
    assert sentence.startswith("epoch 1, batch 3, step 3: the loss is nan")
    assert there.startswith("epoch 1, batch 3, step 3: process 0: the loss is nan")


def test_an_error_of_one_process_ends_all(pair: Results) -> None:
    assert pair["failed"] == [
        ("WorkerError", "process 1 failed: RuntimeError: out of luck"),
        ("RuntimeError", "out of luck"),
    ]


def test_a_parameter_of_one_process_alone_is_refused_in_all(pair: Results) -> None:
    for kind, sentence in pair["late"]:
        assert kind == "ProgramError"
        assert "'store.late'" in sentence and "missing in process 0" in sentence


def test_parts_of_data_that_no_plate_holds_are_refused(pair: Results) -> None:
    for kind, sentence in pair["totals"]:
        assert kind == "ProgramError"
        assert "no plate holds the observations, so the rows of each of 2 processes" in sentence


def test_a_signal_to_one_process_ends_all_after_the_same_step(pair: Results) -> None:
    ends = [ended for ended, _ in pair["terminated"]]
    assert ends == [[8, 143], [8, 143]]
    assert all(names[-1] == "step-00000008" for _, names in pair["terminated"])


def test_a_resumed_training_is_the_same_bit_for_bit(pair: Results) -> None:
    for (history, values), (goes_on, again) in pair["resumed"]:
        assert history.keys() == goes_on.keys()
        assert all(torch.equal(history[name], goes_on[name]) for name in history)
        assert all(torch.equal(values[name], again[name]) for name in values)


@pytest.mark.long
def test_the_bound_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    lone = jobs.trained(tmp_path)
    (found, same) = together(2, tmp_path, "trained")["trained"]
    assert found == same  # evaluated together
    # Welch's interval of 95 %, at the 4 degrees of freedom that it has at least
    assert apart(lone, found) < 2.78


@pytest.mark.long
def test_no_loss_depends_on_the_number_of_processes(tmp_path: Path) -> None:
    """Estimators that train parts of their own, objectives with several losses or particles."""
    lone = losses.evidence(tmp_path)
    (found, same) = together(2, tmp_path, "evidence")["evidence"]
    assert found == same
    for name, values in lone.items():  # five comparisons at 99 %, 4 degrees of freedom
        assert apart(values, found[name]) < 4.6, name


def apart(one: list[float], other: list[float]) -> float:
    """The difference of means in units of its standard error."""
    first, second = torch.tensor(one), torch.tensor(other)
    error = (first.var() / len(first) + second.var() / len(second)).sqrt()
    return (abs(first.mean() - second.mean()) / error).item()


# --- one process ----------------------------------------------------------------------------------


def test_alone_nothing_is_sent() -> None:
    group, x = Group(), torch.ones(2)
    assert group.alone and group.writes
    assert group.gathered(3) == [3] and group.first(4) == 4
    assert group.once(lambda: 5) == group.agreed(lambda: 5) == 5
    group.copy_first([x])
    assert current_group().alone


def test_seeds_of_processes_differ() -> None:
    seeds = [Group(rank, 4).seed(1, 2) for rank in range(4)]
    assert len(set(seeds)) == 4
    assert seeds == [Group(rank, 8).seed(1, 2) for rank in range(4)]


def test_a_connection_that_breaks_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("[gloo] Connection closed by peer\nand more")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(WorkerError, match=r"process 1 of 2 cannot reach .*closed by peer\)$"):
        Group(1, 2).add_up(torch.ones(1))


def test_the_error_of_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(0, 2)
    told: list[Any] = [None, (True, "the loss is nan", "a table")]
    monkeypatch.setattr(Group, "gathered", lambda self, value: told)
    with pytest.raises(NonFiniteError, match="process 1: the loss is nan") as raised:
        group.raise_for(None)
    assert raised.value.table == "a table"
    with pytest.raises(KeyError):
        group.raise_for(KeyError())
    told[1] = (False, "OSError: full", "")
    with pytest.raises(WorkerError, match="process 1 failed: OSError: full") as failed:
        group.agreed(lambda: 3)
    assert failed.value.told
