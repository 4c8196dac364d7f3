"""Intervals of a mean over few repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import final

_TAIL = 0.025


@final
@dataclass(frozen=True)
class Mean:
    """A mean of ``count`` numbers with its 95 % interval: infinite for one number."""

    value: float
    low: float
    high: float
    count: int


def mean_of(values: Sequence[float]) -> Mean:
    r"""The mean with Student's interval.

    .. math:: \bar x \pm t_{0.975, n-1}\, s / \sqrt{n}

    It covers in 95 % of repetitions where the numbers are normal.

    >>> mean = mean_of([1.0, 2.0, 3.0])
    >>> mean.value, round(mean.low, 3), round(mean.high, 3), mean.count
    (2.0, -0.484, 4.484, 3)
    """
    count = len(values)
    if not count:
        return Mean(math.nan, math.nan, math.nan, 0)
    value = fmean(values)
    if not math.isfinite(value):
        return Mean(value, math.nan, math.nan, count)
    if count == 1:
        return Mean(value, -math.inf, math.inf, 1)
    reach = t_quantile(count - 1) * stdev(values) / math.sqrt(count)
    return Mean(value, value - reach, value + reach, count)


def t_quantile(freedom: int) -> float:
    """What a Student variable exceeds with a probability of 2.5 %.

    >>> round(t_quantile(4), 4), round(t_quantile(1), 4)
    (2.7764, 12.7062)
    """
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > _TAIL else (low, middle)
    return (low + high) / 2


def _t_tail(value: float, freedom: int) -> float:
    """One tail of Student's law, by the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for index in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * index / (index + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 - inside) / 2
