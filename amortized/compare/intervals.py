"""Intervals of a mean over few repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import final

_TAIL = 0.025
# of a continued fraction: terms, the smallest number, and when it has converged
_TERMS, _LEAST, _CLOSE = 20_000, 1e-300, 1e-14
# degrees of freedom that are as good as infinite
_MOST = 1e7


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


def f_tail(value: float, above: float, below: float) -> float:
    r"""How often Fisher's F exceeds a value: the regularized incomplete beta function.

    .. math:: I_x(d_2 / 2, d_1 / 2), \quad x = d_2 / (d_2 + d_1 F)

    An infinite :math:`d_2` is taken for a very large one.

    >>> round(f_tail(4.0, 1.0, 60.0), 6), round(f_tail(0.5, 5.0, 20.0), 6)
    (0.050033, 0.772604)
    """
    if not value > 0.0:
        return 1.0
    below = min(below, _MOST)
    a, b = below / 2, above / 2
    if math.isinf(value):
        return 0.0
    x, y = below / (below + above * value), above * value / (below + above * value)
    # each fraction converges on its side of the mean
    if x < (a + 1) / (a + b + 2):
        return math.exp(_front(a, b, x, y)) * _fraction(a, b, x) / a
    return 1.0 - math.exp(_front(a, b, x, y)) * _fraction(b, a, y) / b


def f_quantile(tail: float, above: float, below: float) -> float:
    """What Fisher's F exceeds with a probability."""
    low, high = 0.0, 1.0
    while f_tail(high, above, below) > tail:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f_tail(middle, above, below) > tail else (low, middle)
    return (low + high) / 2


def _front(a: float, b: float, x: float, y: float) -> float:
    beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return a * math.log(x) + b * math.log(y) - beta


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (DLMF 8.17.22)."""
    value, upper, lower = 1.0, 1.0, 0.0
    for index in range(1, _TERMS):
        half, odd = divmod(index, 2)
        places = (a + 2 * half - 1 + odd) * (a + 2 * half + odd)
        top = -(a + half) * (a + b + half) if odd else half * (b - half)
        term = top * x / places
        lower = 1.0 / ((1.0 + term * lower) or _LEAST)
        upper = (1.0 + term / upper) or _LEAST
        value *= upper * lower
        if abs(upper * lower - 1.0) < _CLOSE:
            break
    return 1.0 / value
