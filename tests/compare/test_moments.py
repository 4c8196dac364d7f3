from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amortized.compare.moments import GroupSums, block_sums

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


def test_without_noise_nothing_varies():
    value = torch.full((3,), 0.1)
    still = exactly(value)
    assert still.variance == 0.0 and still.exact and not still.unseen
    assert still.variance_interval() == (0.0, 0.0) and still.signal_to_noise == math.inf


def test_equal_draws_of_what_may_vary_say_nothing():
    still = sums(torch.full((60, 3), 0.1))
    assert still.variance == 0.0 and still.unseen and not still.exact
    assert still.variance_interval() == (0.0, math.inf) and math.isnan(still.signal_to_noise)


def test_a_variance_of_few_rare_draws_has_no_upper_end():
    draws = torch.zeros(1000, 1)
    draws[[3, 4]] = 1.0  # in one block
    low, high = sums(draws).variance_interval()
    assert low >= 0.0 and high == math.inf


def test_moments_of_elements_and_along_a_direction():
    draws = 3.0 + torch.rand(200, 4) ** 4
    found, away = sums(draws), draws - draws.mean(0)
    torch.testing.assert_close(found.variances, draws.var(0))
    torch.testing.assert_close(found.thirds, (away**3).mean(0))
    kurtosis = (away**4).mean(0) / (away**2).mean(0) ** 2
    torch.testing.assert_close(found.freedoms, 400 / (kurtosis - 1))
    torch.testing.assert_close(found.shares, (away**2).amax(0) / (away**2).sum(0))
    few, direction = sums(draws[:90]), torch.tensor([1.0, 2.0, 0.0, -1.0])
    along = draws[:90] @ direction / 6**0.5
    second, third = few.along(direction)
    assert second == pytest.approx(float(along.var(correction=0)), rel=1e-9)
    assert third == pytest.approx(float(((along - along.mean()) ** 3).mean()), rel=1e-9)


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
