"""A training's dealings with other processes: here none, or one that does the same."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch

import amortized as am
from amortized.fit.callbacks import FitState
from amortized.fit.distributed import Group
from amortized.fit.interrupts import Interrupted, Interrupts
from amortized.fit.joint import Joint
from amortized.fit.shards import NO_ROWS
from amortized.fit.terms import Averager, Terms
from tests.fit import tiny
from tests.fit.harness import doubled, pair


def terms(value: float) -> Terms:
    return Terms({"loss": torch.tensor(value)}, per_datum=True)


def fail() -> None:
    raise ZeroDivisionError


def state_of(svi: am.SVI) -> FitState:
    return FitState(svi._stepper.parameters, am.History(1))


def test_alone_everything_is_as_it_was() -> None:
    svi, averager, state = pair(), Averager(), FitState
    joint = Joint(svi._stepper, Interrupts())
    torch.manual_seed(0)
    seeds = joint.seeds()
    torch.manual_seed(0)
    assert seeds == (int(torch.randint(2**31, ())), int(torch.randint(2**31, ())))
    assert joint.own_seed(7) == 7 and joint.merged(averager) is averager
    batches = iter([1, 2])
    assert joint.batches(batches) is batches
    joint.add(averager, terms(2.0), 3)
    assert averager.means() == {"loss": 2.0} and not joint.over
    state = state_of(svi)
    joint.leave(state)
    joint.agree(state)
    assert state.whole and joint.together({}, []) == {} and joint.own([], 0) == {}
    with pytest.raises(ZeroDivisionError):
        joint.attempt(tiny.data(3), fail)


@pytest.fixture
def joint(monkeypatch: pytest.MonkeyPatch) -> Joint:
    """One of two processes that do the same."""
    monkeypatch.setattr("amortized.fit.joint.current_group", lambda: Group(1, 2))
    monkeypatch.setattr(Group, "gathered", lambda self, value: [value, value])
    monkeypatch.setattr(Group, "first", lambda self, value: value)
    monkeypatch.setattr(Group, "add_up", doubled)
    monkeypatch.setattr(Group, "copy_first", lambda self, tensors: None)
    svi = pair()
    svi._stepper.warm_up(tiny.data(4))
    return Joint(svi._stepper, Interrupts())


def test_an_error_waits_for_the_end_of_the_step(joint: Joint) -> None:
    averager = Averager()
    joint.start()
    joint.attempt(tiny.data(3), lambda: joint.add(averager, terms(1.0), 3))
    joint.attempt(tiny.data(3), fail)
    joint.attempt(NO_ROWS, lambda: pytest.fail("there is no row"))
    joint.attempt(tiny.data(3), lambda: pytest.fail("the step has failed"))
    with pytest.raises(ZeroDivisionError):
        joint.apply(None, averager)
    assert averager.weight == 0  # a step that failed counts nowhere
    assert joint.apply(None, averager) is None and joint.over


def test_noise_is_of_each_process(joint: Joint) -> None:
    torch.manual_seed(0)
    joint.seeds()
    first = torch.rand(3)
    torch.manual_seed(0)
    joint.seeds()
    assert torch.equal(first, torch.rand(3)) and joint.own_seed(3) != 3


def test_a_signal_counts_when_all_know_of_it(joint: Joint) -> None:
    interrupts = joint._interrupts
    interrupts.received = signal.SIGTERM
    interrupts.check()
    state = FitState(pair()._stepper.parameters, am.History(1), stop="early")
    joint.agree(state)
    with pytest.raises(Interrupted):
        interrupts.check()
    assert state.stop == "early"


def test_what_ends_training_in_another_process_ends_it_here(
    joint: Joint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(self: Group, value: Any) -> list[Any]:
        return [value, (signal.SIGTERM, "a callback", value[2])]

    monkeypatch.setattr(Group, "gathered", told)
    state = state_of(pair())
    joint.agree(state)
    assert state.stop == "a callback" and joint._interrupts.agreed == signal.SIGTERM


def test_sums_of_processes_are_those_of_all_their_terms() -> None:
    one, other, whole = Averager(), Averager(), Averager()
    for averager, value, local in ((one, 1.0, {"z"}), (other, 4.0, {"y"})):
        named = Terms({"loss": torch.tensor(value)}, True, frozenset(local))
        for kept in (averager, whole):
            kept.add(named, 3)
    both = Averager.of([one.on_cpu(), other.on_cpu()])
    assert both.means() == whole.means() == {"loss": 2.5}
    assert both.local == whole.local == {"z", "y"} and both.weight == 6


def test_data_that_end_by_a_signal_are_no_failure(joint: Joint) -> None:
    joint._interrupts.received = signal.SIGINT
    joint._failed(OSError("worker killed"))
    assert joint._reduction is not None and joint._reduction.error is None
    joint._interrupts.received = None
    joint._failed(OSError("disk"))
    assert isinstance(joint._reduction.error, OSError)


def test_who_leaves_says_nothing_to_the_others(joint: Joint) -> None:
    state = state_of(pair())
    joint.leave(state)
    assert joint.group.alone and not joint.group.writes and not state.whole
    joint.close()


def test_another_number_of_processes_goes_on_with_other_noise(joint: Joint) -> None:
    own = joint.own([{"rng": 1}, {"rng": 2}], 5)
    assert own == {"rng": 2}
    fresh = joint.own([], 5)
    assert fresh["averager"]["weight"] == 0
    joint.group = Group(0, 2)
    with pytest.warns(UserWarning, match="resumed in 2 processes, and there were 1"):
        assert joint.own([], 5) == {}


def test_choosing_estimators_by_the_clock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amortized.fit.joint.current_group", lambda: Group(0, 2))
    monkeypatch.setattr(Group, "first", lambda self, value: value)
    svi = pair(loss=am.VariationalLoss(estimators="auto"))
    with pytest.raises(am.UsageError, match="estimators='auto' among 2 processes"):
        Joint(svi._stepper, Interrupts())
