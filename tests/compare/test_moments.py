from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from amortized.compare.moments import (
    GroupSums,
    _chi_square_quantile,
    bias_of,
    block_sums,
)

pytestmark = pytest.mark.float64


def sums(draws: Tensor, *, noiseless: bool = False) -> GroupSums:
    columns = torch.arange(draws.shape[1])
    blocks = block_sums([draws], len(draws), [columns])
    return GroupSums(replace(blocks, noiseless=noiseless), columns, 0)


def exactly(value: Tensor) -> GroupSums:
    return sums(value.expand(3, -1), noiseless=True)


def test_moments_are_those_of_all_draws_however_they_come_and_are_grouped():
    draws = 5.0 + torch.randn(257, 6) * torch.arange(1.0, 7.0)
    groups = [torch.tensor([0, 3]), torch.arange(6)]
    blocks = block_sums(draws.split([100, 1, 156]), 257, groups)
    for index, group in enumerate(groups):
        found = GroupSums(blocks, group, index)
        torch.testing.assert_close(found.mean, draws[:, group].mean(0))
        assert found.variance == pytest.approx(float(draws[:, group].var(0).sum()), rel=1e-12)
    assert blocks.count == 257


def test_fewer_or_more_draws_than_announced_are_an_error():
    with pytest.raises(ValueError, match="9 draws: expected 10"):
        block_sums([torch.zeros(9, 1)], 10, [torch.tensor([0])])


def test_products_of_covariances_have_the_right_mean():
    mix, other = torch.randn(4, 4), torch.randn(4, 4)
    one, two = mix @ mix.T, other @ other.T
    squares, products = [], []
    for _ in range(200):
        a, b = sums(torch.randn(400, 4) @ mix.T), sums(torch.randn(300, 4) @ other.T)
        squares.append(a.squared_covariance())
        products.append(a.common_covariance(b))
    for found, exact in ((squares, (one @ one).trace()), (products, (one @ two).trace())):
        values = torch.tensor(found)
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - exact) < 4 * error
        assert error < 0.02 * exact


@pytest.mark.parametrize("law", ["gauss", "skewed", "coin"])
def test_variance_intervals_cover(law: str):
    made = {
        "gauss": (lambda: torch.randn(500, 3), 3.0),
        "skewed": (lambda: -torch.rand(500, 1).log(), 1.0),
        "coin": (lambda: (torch.rand(500, 1) < 0.5).double(), 0.25),  # flat in the mean
    }
    draw, exact = made[law]
    count, runs = 0, 400
    for seed in range(runs):
        low, high = sums(draw()).variance_interval(seed)
        count += low <= exact <= high
    # for a coin of p = 1/2 the interval is wider than it has to be
    assert 0.92 < count / runs < (0.98 if law != "coin" else 1.01)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [1, 6])
def test_p_values_are_uniform_without_a_bias(size: int, noisy: bool):
    mix = torch.randn(size, size)
    found = []
    for _ in range(300):
        truth = torch.randn(size)
        own = sums(truth + torch.randn(200, size) @ mix.T)
        other = sums(truth + torch.randn(300, size) @ mix) if noisy else exactly(truth)
        found.append(bias_of(own, other).p_value)
    assert kstest(found, "uniform").pvalue > 0.01


def test_p_values_are_not_uniform_where_the_references_error_is_left_out():
    """The mutant of the test above."""
    found = []
    for _ in range(300):
        own, other = sums(torch.randn(200, 2)), torch.randn(300, 2).mean(0)
        found.append(bias_of(own, exactly(other)).p_value)
    assert kstest(found, "uniform").pvalue < 1e-6


def test_bias_intervals_cover_and_biases_are_found():
    shift = torch.tensor([0.3, 0.4])
    covered = 0
    for _ in range(200):
        bias = bias_of(sums(shift + torch.randn(1000, 2)), exactly(torch.zeros(2)))
        covered += bias.interval[0] <= 0.5 <= bias.interval[1]
        assert bias.p_value < 1e-6
        assert bias.z > 5
    assert covered >= 190


def test_without_a_variance_only_rounding_is_forgiven():
    value = torch.full((3,), 0.1)
    still = exactly(value)
    assert still.variance == 0.0 and still.exact and not still.unseen
    assert still.variance_interval() == (0.0, 0.0) and still.signal_to_noise == math.inf
    assert bias_of(still, still).p_value == 1.0
    assert bias_of(exactly(value * (1 + 1e-15)), still).p_value > 0.1
    assert bias_of(exactly(value * (1 + 1e-10)), still).p_value < 1e-12
    assert bias_of(exactly(0 * value), exactly(0 * value)).p_value == 1.0


def test_equal_draws_of_what_may_vary_say_nothing():
    still, away = sums(torch.full((60, 3), 0.1)), exactly(torch.full((3,), 0.2))
    assert still.variance == 0.0 and still.unseen and not still.exact
    assert still.variance_interval() == (0.0, math.inf) and math.isnan(still.signal_to_noise)
    for bias in (bias_of(still, away), bias_of(away, still)):
        assert bias.norm == pytest.approx(0.1 * 3**0.5) and bias.interval == (0.0, math.inf)
        assert math.isnan(bias.p_value) and math.isnan(bias.z)


def test_quantiles_are_those_of_scipy():
    for freedom in (1.0, 2.7, 40.0):
        expected = chi2.isf(0.05, freedom)
        assert _chi_square_quantile(0.05, freedom) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.5])
def test_small_signals_are_told_from_the_noise_of_the_mean(ratio: float):
    count, size, runs = 400, 2500, 10
    torch.manual_seed(0)
    columns = torch.arange(size)
    # each element has this mean and a variance of one
    draws = (torch.randn(count, size, dtype=torch.float64) + ratio for _ in range(runs))
    found = [GroupSums(block_sums([part], count, [columns]), columns, 0) for part in draws]
    squares = [part.signal_to_noise**2 for part in found]
    if ratio:
        # of a squared mean of normal variables
        error = (2 / (size * count**2) + 4 * ratio**2 / (size * count)) ** 0.5 / runs**0.5
        assert abs(sum(squares) / runs - ratio**2) < 4.5 * error
    else:
        assert max(squares) < 4.5 * (2 / size) ** 0.5 / count
        assert min(squares) == 0.0
