"""Whether a mean gradient is further from the reference than chance explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from amortized.compare.intervals import f_quantile, f_tail
from amortized.compare.moments import GroupSums, Interval

_TAIL: Final = 0.05
# a mean is not told apart from another by less than so many roundings of its largest element
_ROUNDINGS: Final = 64
# A sum of k equal terms is at most the root of k times their root mean square, so the squared
# deviation that a verdict may rest on is at most so many times the inverse share of the largest.
_CARRIED: Final = 1.5
_MANY: Final = 1e6


@final
@dataclass(frozen=True)
class Bias:
    """How far a mean gradient is from the reference.

    ``norm`` is the distance, ``interval`` a 95 % interval of the bias (at least so often: by the
    triangle inequality), ``p_value`` how often an unbiased estimate would be as far away, and ``z``
    the deviation of a standard normal variable that is as rare; NaN where draws are too few.
    ``least`` is the smallest p-value that the draws can carry, however far the mean is: it is large
    where few of them hold most of the variance. ``worst`` is the element that is furthest away.
    """

    norm: float
    interval: Interval
    z: float
    p_value: float
    least: float = 0.0
    worst: int = 0

    @property
    def carried(self) -> float:
        """The p-value that a verdict may rest on."""
        return max(self.p_value, self.least)


@final
@dataclass(frozen=True)
class _Tested:
    p_value: float
    least: float


def bias_of(found: GroupSums, reference: GroupSums) -> Bias:
    r"""Compare two means by their distance, and by the element that is furthest away.

    Without a bias the squared distance is :math:`\sum_k \lambda_k \chi^2_1` with the eigenvalues of
    the covariance of the difference; a multiple of a chi-square variable with the same mean and
    variance (Box) stands for it, and with the estimated covariance one of Fisher's F. The
    studentized elements have Student's law after Hall's (1992) correction for skewness, the
    largest of :math:`P` by Šidák. Both count as two tests of the group; one element has one.
    A reference without noise has no error.
    """
    away = found.mean - reference.mean
    norm = float(away.norm())
    if found.unseen or reference.unseen:
        return Bias(norm, (0.0, math.inf), math.nan, math.nan, 1.0)
    scale = max(float(found.mean.abs().max()), float(reference.mean.abs().max()))
    rounding = (_ROUNDINGS * max(found.precision, reference.precision) * scale) ** 2
    if scale == 0.0:
        return Bias(0.0, (0.0, 0.0), 0.0, 1.0)
    worst, element = _elements(found, reference, rounding)
    trace, freedoms = _law(found, reference, rounding)
    reach = math.sqrt(trace * f_quantile(_TAIL, *freedoms))
    tests = [element]
    if found.elements > 1:
        tests.append(_distance(found, reference, trace, freedoms))
    p_value, least = (
        _of_many(min(tails), len(tests))
        for tails in ([t.p_value for t in tests], [t.least for t in tests])
    )
    # a p-value below the smallest number is that of z = 37
    z = -float(torch.special.ndtri(torch.tensor(max(p_value, 1e-300) / 2, dtype=torch.float64)))
    interval = max(0.0, norm - reach), norm + reach
    return Bias(norm, interval, max(0.0, z), p_value, least, worst)


def is_rare(found: GroupSums) -> bool:
    """Whether one draw or two hold the variance, so that there may be rarer and larger ones."""
    carried = _CARRIED / found.largest_share if found.largest_share else math.inf
    return f_tail(carried, 1.0, found.count - 1) >= _TAIL


def _of_many(p_value: float, count: int) -> float:
    """Of the smallest of so many tests."""
    return 1.0 if p_value >= 1.0 else -math.expm1(count * math.log1p(-p_value))


def _law(
    found: GroupSums, reference: GroupSums, rounding: float
) -> tuple[float, tuple[float, float]]:
    """The expected squared distance, and both degrees of freedom of its ratio to it."""
    n, m = found.count, reference.count
    ours, theirs = found.variance / n, reference.variance / m
    square = found.squared_covariance() / n**2
    if not reference.exact:
        square += reference.squared_covariance() / m**2
        square += 2 * found.common_covariance(reference) / (n * m)
    trace = ours + theirs + rounding * found.elements
    freedom = max(1.0, trace**2 / (square + rounding**2 * found.elements))
    # of the estimated trace, by the relative variance that it has
    error = (ours * found.relative_error) ** 2 + (theirs * reference.relative_error) ** 2
    below = 2 * trace**2 / error if error else math.inf
    return trace, (freedom, min(below, freedom * (n - 1)))


def _distance(
    found: GroupSums, reference: GroupSums, trace: float, freedoms: tuple[float, float]
) -> _Tested:
    """The squared distance, with the skewness along it taken out as for one element."""
    away = found.mean - reference.mean
    distance = float(away.square().sum())
    n, m = found.count, reference.count
    (ours, third), (theirs, other) = found.along(away), reference.along(away)
    error = ours / n + theirs / m
    if distance and error:
        along = torch.tensor([math.sqrt(distance / error)], dtype=torch.float64)
        cubed = torch.tensor([(third / n**2 - other / m**2) / error**1.5], dtype=torch.float64)
        distance *= float(_unskewed(along, cubed) / along) ** 2
    parts = (
        found.largest_share * found.variance / n,
        reference.largest_share * reference.variance / m,
    )
    share = max(parts) / trace
    carried = _CARRIED / share if share else math.inf
    return _Tested(f_tail(distance / trace, *freedoms), f_tail(carried, *freedoms))


@final
@dataclass(frozen=True, eq=False)
class Studentized:
    """Deviations of single elements over their standard errors, with degrees of freedom.

    ``carried`` is the largest deviation that the draws can carry; 0 where nothing was met.
    """

    t: Tensor
    freedom: Tensor
    carried: Tensor


def studentized(found: GroupSums, reference: GroupSums, rounding: float = 0.0) -> Studentized:
    """Of all elements of a group, corrected for skewness."""
    n, m = found.count, reference.count
    ours, theirs = found.variances / n, reference.variances / m
    error = ours + theirs + rounding
    thirds = (found.thirds / n**2 - reference.thirds / m**2) / error**1.5
    t = _unskewed((found.mean - reference.mean) / error.sqrt(), thirds)
    freedom = error**2 / (ours**2 / found.freedoms + theirs**2 / reference.freedoms)
    freedom = freedom.nan_to_num(nan=_MANY, posinf=_MANY).clamp(1.0, _MANY)
    share = torch.maximum(ours * found.shares, theirs * reference.shares) / error
    carried = (_CARRIED / share).sqrt().nan_to_num(nan=_MANY, posinf=_MANY)
    # what was never met at an element says nothing of it
    met = (ours > 0) | (not found.drawn)
    return Studentized(t.where(met, 0.0), freedom, carried.where(met, 0.0))


def _elements(found: GroupSums, reference: GroupSums, rounding: float) -> tuple[int, _Tested]:
    """The place of the element that is furthest away, and how rare that is among so many."""
    each, p_values = studentized(found, reference, rounding), []
    worst = int(_normal(each.t, each.freedom).argmax())
    sure = int(_normal(each.carried, each.freedom).argmax())
    for place, value in ((worst, each.t), (sure, each.carried)):
        p = f_tail(float(value[place]) ** 2, 1.0, float(each.freedom[place]))
        p_values.append(_of_many(p, found.elements))
    return worst, _Tested(*p_values)


def _unskewed(t: Tensor, skewness: Tensor) -> Tensor:
    """What is left of studentized deviations; never more than there was."""
    hall = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
    left = torch.minimum(t.abs(), hall.abs())
    return torch.where(t * hall > 0, left, 0.0)


def _normal(t: Tensor, freedom: Tensor) -> Tensor:
    """Normal variables about as rare as Student's (Wallace 1959), to find the rarest."""
    return (8 * freedom + 1) / (8 * freedom + 3) * (freedom * (t**2 / freedom).log1p()).sqrt()
