from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom, kstest
from scipy.stats import t as student
from torch import Tensor

from amortized.compare.bias import bias_of, studentized
from amortized.compare.moments import GroupSums
from tests.compare.test_moments import exactly, sums

pytestmark = pytest.mark.float64
REPEATS = 20_000
Law = tuple[Callable[[int], Tensor], float]


def p_values(draws: Tensor, truth: float) -> tuple[Tensor, Tensor]:
    """Each column is a comparison of its own: its p-value, and what a verdict may rest on."""
    each = studentized(sums(draws), exactly(torch.full((draws.shape[1],), truth)))
    tails = [2 * student.sf(t, each.freedom) for t in (each.t, each.t.minimum(each.carried))]
    return torch.as_tensor(tails[0]), torch.as_tensor(tails[1])


def at_most(level: float, count: int) -> float:
    """What a binomial variable exceeds once in ten thousand times."""
    return float(binom.isf(1e-4, count, level))


@pytest.mark.parametrize("count", [50, 200])
def test_small_p_values_are_as_rare_as_they_say(count: int):
    found, _ = p_values(torch.randn(count, REPEATS), 0.0)
    for level in (2.5e-4, 1e-2):
        low, high = (float(binom.ppf(q, REPEATS, level)) for q in (1e-4, 1 - 1e-4))
        # of 2.5e-4 five are expected: a factor of two and the chance of so few
        assert low / 2 <= int((found < level).sum()) <= 2 * high
    assert kstest(found, "uniform").pvalue > 1e-3


def rare(p: float) -> Law:
    """A score function with a cost that is 1 where the bit is."""
    return lambda n: (torch.rand(n, REPEATS) < p) * (1.0 - p), p * (1.0 - p)


def lognormal() -> Law:
    return lambda n: torch.randn(n, REPEATS).exp(), math.exp(0.5)


@pytest.mark.parametrize("count", [50, 200, 1000])
@pytest.mark.parametrize("law", [rare(0.01), rare(0.02), rare(0.05), lognormal()])
@pytest.mark.parametrize("rows", [3, 40])
def test_false_alarms_of_heavy_tails(law: Law, count: int, rows: int):
    draw, truth = law
    _, carried = p_values(draw(count), truth)
    comparisons = (carried[: REPEATS // rows * rows] * rows < 0.01).reshape(-1, rows)
    alarms = int(comparisons.any(1).sum())
    assert alarms <= at_most(0.01, len(comparisons))


def test_without_the_correction_rare_outcomes_are_called_biased():
    """The mutant of the test above."""
    draw, truth = rare(0.01)
    found = sums(draw(200))
    t = (found.mean - truth).abs() / (found.variances / found.count).sqrt()
    alarms = torch.as_tensor(2 * student.sf(t, found.count - 1)) < 0.01
    assert int(alarms.sum()) > 10 * at_most(0.01, REPEATS)


def test_a_bias_is_still_found_where_outcomes_are_rare():
    draw, truth = rare(0.05)
    for wrong in (0.25, 2.0):
        assert float((p_values(draw(1000), wrong * truth)[1] < 2.5e-4).double().mean()) > 0.5


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [1, 6])
def test_p_values_without_a_bias(size: int, noisy: bool):
    mix = torch.randn(size, size)
    found = []
    for _ in range(200):
        truth = torch.randn(size)
        own = sums(truth + torch.randn(200, size) @ mix.T)
        other = sums(truth + torch.randn(300, size) @ mix) if noisy else exactly(truth)
        found.append(bias_of(own, other).p_value)
    # of two tests of one group it is at most as rare as it says
    way = "two-sided" if size == 1 else "greater"
    assert kstest(found, "uniform", alternative=way).pvalue > 0.01


def test_p_values_are_not_uniform_where_the_references_error_is_left_out():
    """The mutant of the test above."""
    found = []
    for _ in range(200):
        own, other = sums(torch.randn(200, 2)), torch.randn(100, 2).mean(0)
        found.append(bias_of(own, exactly(other)).p_value)
    assert kstest(found, "uniform", alternative="greater").pvalue < 1e-6


def test_bias_intervals_cover_and_biases_are_found():
    shift = torch.tensor([0.3, 0.4])
    covered = 0
    for _ in range(200):
        bias = bias_of(sums(shift + torch.randn(1000, 2)), exactly(torch.zeros(2)))
        covered += bias.interval[0] <= 0.5 <= bias.interval[1]
        assert bias.carried < 1e-6
        assert bias.z > 5
    assert covered >= 190


@pytest.mark.parametrize("size", [100, 5000])
def test_a_bias_of_one_element_among_many_is_found_and_named(size: int):
    draws = torch.randn(400, size)
    draws[:, 7] += 10 / 400**0.5
    bias = bias_of(sums(draws), exactly(torch.zeros(size)))
    assert bias.worst == 7 and bias.carried < 1e-8


def test_without_noise_only_rounding_is_forgiven():
    value = torch.full((3,), 0.1)
    still = exactly(value)
    assert bias_of(still, still).p_value == 1.0
    assert bias_of(exactly(value * (1 + 1e-15)), still).p_value > 0.1
    assert bias_of(exactly(value * (1 + 1e-10)), still).carried < 1e-12
    assert bias_of(exactly(0 * value), exactly(0 * value)).p_value == 1.0


def test_equal_draws_of_what_may_vary_say_nothing():
    still, away = sums(torch.full((60, 3), 0.1)), exactly(torch.full((3,), 0.2))
    for bias in (bias_of(still, away), bias_of(away, still)):
        assert bias.norm == pytest.approx(0.1 * 3**0.5) and bias.interval == (0.0, math.inf)
        assert math.isnan(bias.p_value) and math.isnan(bias.z) and bias.least == 1.0


def test_one_draw_that_holds_the_variance_carries_no_verdict():
    def with_one(value: float) -> GroupSums:
        draws = 1e-3 * torch.randn(1000, 4)
        draws[17] += value
        return sums(draws)

    bias = bias_of(with_one(5.0), exactly(torch.full((4,), 0.2)))
    assert bias.least > 0.01 and bias.carried > 0.01
