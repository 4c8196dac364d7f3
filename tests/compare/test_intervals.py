from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from amortized.compare.intervals import mean_of, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 199])
def test_quantiles_are_those_of_students_law(freedom: int):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-10)


def test_intervals_cover_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4000, 5, generator=generator).tolist()
    covered = sum(m.low <= 0.0 <= m.high for m in map(mean_of, samples)) / 4000
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_few_numbers_and_strange_ones():
    assert math.isnan(mean_of([]).value) and mean_of([]).count == 0
    one = mean_of([2.0])
    assert (one.value, one.low, one.high) == (2.0, -math.inf, math.inf)
    assert mean_of([3.0, 3.0]).low == mean_of([3.0, 3.0]).high == 3.0
    assert mean_of([1.0, -math.inf]).value == -math.inf
    assert math.isnan(mean_of([1.0, math.nan]).low)
