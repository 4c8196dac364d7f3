from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from amortized.compare.intervals import f_quantile, f_tail, mean_of, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 199])
def test_quantiles_are_those_of_students_law(freedom: int):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-10)


@pytest.mark.parametrize(
    ("above", "below"), [(1.0, 1.0), (1.0, 49.0), (2.7, 999.0), (300.0, 5000.0), (1e4, 1e6)]
)
def test_tails_and_quantiles_are_those_of_fishers_law(above: float, below: float):
    for value in (0.01, 0.9, 1.5, 4.0, 100.0):
        expected = stats.f.sf(value, above, below)
        assert f_tail(value, above, below) == pytest.approx(expected, rel=1e-7, abs=1e-290)
    assert f_quantile(0.05, above, below) == pytest.approx(stats.f.isf(0.05, above, below))
    assert (f_tail(0.0, above, below), f_tail(math.inf, above, below)) == (1.0, 0.0)
    assert f_tail(9.0, 1.0, math.inf) == pytest.approx(stats.chi2.sf(9.0, 1), rel=1e-5)


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
