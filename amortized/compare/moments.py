"""Mean, variance and bias of random gradients, from sums over blocks of draws.

A block is a run of consecutive draws. The sums over a hundred blocks are kept, and not the draws,
so that the memory does not grow with their number; blocks are what the bootstrap draws again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_BLOCKS = 100
_REPLICATES = 1000
_TAIL = 0.025
_FLAT = 3.84  # the square of 1.96
# a mean is not told apart from another by less than so many roundings of its largest element
_ROUNDINGS = 64

Interval = tuple[float, float]


@final
@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums over blocks of draws of a gradient's deviation from its first draw.

    ``centre`` is that draw, shape ``[P]``; ``sums`` the sum of deviations over each block,
    ``[B, P]``; ``squares`` that of their squares over each group of elements, ``[B, groups]``;
    ``sizes`` how many draws a block has, ``[B]``. All in float64; ``precision`` is the rounding
    unit of the draws. ``noiseless``: no generator was asked for them, so that equal draws are all
    there are; else equal draws say that what varies was not met.
    """

    centre: Tensor
    sums: Tensor
    squares: Tensor
    sizes: Tensor
    precision: float
    noiseless: bool = False

    @property
    def count(self) -> int:
        """How many draws there were."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> Tensor:
        """The mean gradient, shape ``[P]``."""
        return self.centre + self.sums.sum(0) / self.count


def block_sizes(count: int) -> list[int]:
    """The sizes of at most a hundred blocks of nearly equal length.

    >>> block_sizes(250)[:3], len(block_sizes(250)), sum(block_sizes(250))
    ([3, 3, 3], 100, 250)
    """
    blocks = min(count, _BLOCKS)
    return [count // blocks + (index < count % blocks) for index in range(blocks)]


def block_sums(chunks: Iterable[Tensor], count: int, groups: Sequence[Tensor]) -> BlockSums:
    """Accumulate draws, given in chunks of shape ``[m, P]``, ``count`` in all.

    ``groups`` are the indices of the elements that are summed up together.
    """
    sizes = block_sizes(count)
    block_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centre = sums = squares = None
    precision, done = 0.0, 0
    for chunk in chunks:
        precision = max(precision, torch.finfo(chunk.dtype).eps)
        chunk = chunk.to("cpu", torch.float64)
        if centre is None or sums is None or squares is None:
            centre = chunk[0].clone()
            sums = centre.new_zeros(len(sizes), len(centre))
            squares = centre.new_zeros(len(sizes), len(groups))
        away = chunk - centre
        place = block_of[done : done + len(away)]
        sums.index_add_(0, place, away)
        total = [away[:, group].square().sum(-1) for group in groups]
        squares.index_add_(0, place, torch.stack(total, -1))
        done += len(away)
    if centre is None or sums is None or squares is None or done != count:
        raise ValueError(f"{done} draws: expected {count}")
    return BlockSums(centre, sums, squares, torch.tensor(sizes, dtype=torch.float64), precision)


@final
class GroupSums:
    """One group of elements of `BlockSums`: the trace of the covariance, and what it rests on.

    Attributes:
        mean: ``[elements]``.
        variance: the trace of the covariance of one draw.
        exact: there is no noise at all.
        unseen: there may be noise, and all draws are equal.
    """

    def __init__(self, blocks: BlockSums, columns: Tensor, index: int) -> None:
        self.count, self.sizes, self.precision = blocks.count, blocks.sizes, blocks.precision
        centre, sums = blocks.centre[columns], blocks.sums[:, columns]
        shift = sums.sum(0) / self.count
        self.mean = centre + shift
        self._away = sums - self.sizes[:, None] * shift
        # sums of squares about the mean, of each block
        squares = blocks.squares[:, index]
        about = squares - 2 * sums @ shift + self.sizes * shift.square().sum()
        self._about = about.clamp(min=0.0)
        self.variance = float(self._about.sum()) / (self.count - 1)
        self.exact = blocks.noiseless and self.variance == 0.0
        self.unseen = not blocks.noiseless and self.variance == 0.0

    @property
    def elements(self) -> int:
        """How many."""
        return len(self.mean)

    @property
    def signal_to_noise(self) -> float:
        r"""The norm of the expectation over the standard deviation; infinite without noise.

        .. math:: \sqrt{\max(\lVert\bar g\rVert^2 / \operatorname{tr}\operatorname{Cov} g - 1/n, 0)}

        The mean of :math:`n` draws has noise of its own, :math:`E\lVert\bar g\rVert^2 =
        \lVert E g\rVert^2 + \operatorname{tr}\operatorname{Cov} g / n`, so without the last term
        no ratio below :math:`1/\sqrt n` could be seen. NaN where equal draws say nothing.
        """
        if self.unseen:
            return math.nan
        if self.variance == 0.0:
            return math.inf
        return math.sqrt(max(float(self.mean.square().sum()) / self.variance - 1 / self.count, 0.0))

    def _whitened(self) -> Tensor:
        """A row for each block with the covariance of one draw, shape ``[B, elements]``."""
        return self._away / self.sizes.sqrt()[:, None]

    def squared_covariance(self) -> float:
        """The trace of the square of the covariance, without the bias of few blocks."""
        rows = self._whitened()
        free = len(rows) - 1
        gram = rows @ rows.T / free
        trace = float(gram.diagonal().sum())
        if trace == 0.0:
            return 0.0
        square = float(gram.square().sum())
        square = free**2 / ((free - 1) * (free + 2)) * (square - trace**2 / free)
        share = min(1.0, max(1.0 / self.elements, square / trace**2))
        return share * self.variance**2

    def common_covariance(self, other: GroupSums) -> float:
        """The trace of the product of two covariances."""
        ours, theirs = self._whitened(), other._whitened()
        product = float((ours @ theirs.T).square().sum())
        return product / ((len(ours) - 1) * (len(theirs) - 1))

    def variance_interval(self, seed: int = 0) -> Interval:
        """A 95 % interval of the variance: studentized bootstrap of its logarithm, over blocks."""
        if self.variance == 0.0:
            return 0.0, math.inf if self.unseen else 0.0
        generator = torch.Generator().manual_seed(seed)
        blocks = len(self.sizes)
        picked = torch.randint(blocks, (_REPLICATES, blocks), generator=generator)
        weights = self.sizes.new_zeros(_REPLICATES, blocks)
        weights.scatter_add_(1, picked, torch.ones_like(picked, dtype=weights.dtype))
        gram = self._away @ self._away.T
        variance, error = self._replicated(weights, gram)
        ones = torch.ones(1, blocks, dtype=weights.dtype)
        spread = float(self._replicated(ones, gram)[1])
        moved = (variance.log() - math.log(self.variance)) * variance / error
        # replicates without a spread say that the interval has no end on their side
        moved = torch.where(error > 0, moved, (variance - self.variance).sign() * math.inf)
        ends = torch.tensor([_TAIL, 1 - _TAIL], dtype=moved.dtype)
        low, high = torch.quantile(moved.nan_to_num(nan=0.0), ends, interpolation="nearest")
        relative = spread / self.variance
        # the error of the mean itself, which the bootstrap misses where the variance is flat in it
        flat = _FLAT / self.count
        down = math.hypot(float(high.clamp(min=0.0)) * relative, flat)
        up = math.hypot(float((-low).clamp(min=0.0)) * relative, flat)
        return self.variance * math.exp(-down), self.variance * math.exp(min(up, 700.0))

    def _replicated(self, weights: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        """The variance and its standard error for blocks counted so often, ``[R, B]``."""
        count = (weights @ self.sizes)[:, None]
        inner = weights @ gram / count  # deviations of blocks along the replicate's mean
        shift = ((weights * inner).sum(1, keepdim=True) / count).clamp(min=0.0)
        about = self._about - 2 * inner + self.sizes * shift
        variance = (weights * about).sum(1, keepdim=True) / (count - 1)
        residual = weights * (about - variance * self.sizes).square()
        error = residual.sum(1, keepdim=True).sqrt() / count
        return variance.squeeze(1), error.squeeze(1)


@final
@dataclass(frozen=True)
class Bias:
    """How far a mean gradient is from the reference.

    ``norm`` is the distance, ``interval`` a 95 % interval of the bias (at least so often: by the
    triangle inequality), ``p_value`` how often an unbiased estimate would be as far away, and ``z``
    the deviation of a standard normal variable that is as rare; NaN where draws are too few.
    """

    norm: float
    interval: Interval
    z: float
    p_value: float


def bias_of(found: GroupSums, reference: GroupSums) -> Bias:
    r"""Compare two means by their squared distance.

    Without a bias it is :math:`\sum_k \lambda_k \chi^2_1` with the eigenvalues of the covariance
    of the difference; a multiple of a chi-square variable with the same mean and variance (Box)
    stands for it, exact for one element. A reference without noise has no error.
    """
    if found.unseen or reference.unseen:
        norm = float((found.mean - reference.mean).norm())
        return Bias(norm, (0.0, math.inf), math.nan, math.nan)
    away = found.mean - reference.mean
    n, m = found.count, reference.count
    trace = found.variance / n + reference.variance / m
    square = found.squared_covariance() / n**2
    if not reference.exact:
        square += reference.squared_covariance() / m**2
        square += 2 * found.common_covariance(reference) / (n * m)
    scale = max(float(found.mean.abs().max()), float(reference.mean.abs().max()))
    rounding = (_ROUNDINGS * max(found.precision, reference.precision) * scale) ** 2
    trace, square = trace + rounding * found.elements, square + rounding**2 * found.elements
    distance = float(away.square().sum())
    if trace == 0.0:
        return Bias(0.0, (0.0, 0.0), 0.0, 1.0)
    unit, freedom = square / trace, max(1.0, trace**2 / square)
    p_value = _chi_square_tail(distance / unit, freedom)
    reach = math.sqrt(unit * _chi_square_quantile(2 * _TAIL, freedom))
    norm = math.sqrt(distance)
    # a p-value below the smallest number is that of z = 37
    z = -float(torch.special.ndtri(torch.tensor(max(p_value, 1e-300) / 2, dtype=torch.float64)))
    return Bias(norm, (max(0.0, norm - reach), norm + reach), max(0.0, z), p_value)


def _chi_square_tail(value: float, freedom: float) -> float:
    pair = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(pair[0], pair[1]))


def _chi_square_quantile(tail: float, freedom: float) -> float:
    """What a chi-square variable exceeds with probability ``tail``."""
    low, high = 0.0, freedom + 20.0 * math.sqrt(2 * freedom) + 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _chi_square_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2
