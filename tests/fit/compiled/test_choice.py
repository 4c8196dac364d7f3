"""What "auto" chooses rests on counts that every run of a program shares; time has only a veto."""

from __future__ import annotations

import pytest

from amortized.fit.compiled.choice import (
    Outlook,
    Stopwatch,
    worth_capturing,
    worth_compiling,
)


def test_of_an_unknown_number_as_many_are_expected_as_there_were() -> None:
    assert Outlook(past=70, future=None).steps == 70
    assert Outlook(past=70, future=12.5).steps == 12.5
    assert Outlook(past=70, future=0).steps == 0


@pytest.mark.parametrize(("future", "chosen"), [(0, False), (399, False), (400, True), (1e9, True)])
def test_a_capture_needs_steps_to_come(future: float, chosen: bool) -> None:
    assert worth_capturing(Outlook(10**6, future)) is chosen
    assert worth_capturing(Outlook(int(future), None)) is chosen


@pytest.mark.parametrize(("future", "chosen"), [(0, False), (79, False), (80, True), (1e9, True)])
def test_a_capture_without_gradients_needs_fewer(future: float, chosen: bool) -> None:
    assert worth_capturing(Outlook(10**6, future), gradient=False) is chosen


def least_steps(calls: int) -> int:
    """The smallest number of steps to come that is worth a compilation."""
    low, high = 0, 10**12
    while low < high:
        middle = (low + high) // 2
        if worth_compiling(Outlook(0, middle), calls):
            high = middle
        else:
            low = middle + 1
    return low


def test_a_compilation_is_repaid_twice_over() -> None:
    """What a graph saves at 2.5 microseconds a call, against 6 seconds and 0.04 for each call."""
    for calls in (10, 120, 1000):
        repaid = 2 * (6 + 0.04 * calls) / (2.5e-6 * calls)
        assert least_steps(calls) == pytest.approx(repaid, rel=1e-6, abs=1)


def test_small_graphs_need_more_steps_and_large_ones_some() -> None:
    needed = [least_steps(calls) for calls in (1, 10, 100, 1000, 10**5)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] > 2 * 0.04 / 2.5e-6
    assert not worth_compiling(Outlook(0, 10**9), calls=0)


def filled(**seconds: list[float]) -> Stopwatch:
    watch = Stopwatch()
    for kind, taken in seconds.items():
        for each in taken:
            watch.add(kind, each)
    return watch


def test_a_kind_is_slower_by_a_margin() -> None:
    assert filled(ours=[1.3] * 20, theirs=[1.0] * 20).slower("ours", "theirs")
    assert not filled(ours=[1.2] * 20, theirs=[1.0] * 20).slower("ours", "theirs")
    assert filled(ours=[1.2] * 20, theirs=[1.0] * 20).slower("ours", "theirs", margin=1.1)
    assert not filled(ours=[1.0] * 20, theirs=[1.3] * 20).slower("ours", "theirs")


def test_one_slow_step_is_no_reason() -> None:
    assert not filled(ours=[50.0] * 9 + [1.0] * 11, theirs=[1.0] * 20).slower("ours", "theirs")
    assert filled(ours=[50.0] * 11 + [1.0] * 9, theirs=[1.0] * 20).slower("ours", "theirs")


@pytest.mark.parametrize(("ours", "theirs"), [(19, 50), (50, 19), (0, 50), (50, 0)])
def test_both_must_have_been_seen(ours: int, theirs: int) -> None:
    assert not filled(ours=[9.0] * ours, theirs=[1.0] * theirs).slower("ours", "theirs")


def test_only_the_first_hundred_are_looked_at() -> None:
    watch = filled(ours=[1.0] * 100 + [9.0] * 1000, theirs=[1.0] * 20)
    assert not watch.slower("ours", "theirs")
