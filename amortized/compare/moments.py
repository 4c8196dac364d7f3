"""Mean and variance of random gradients, from sums over blocks of draws.

A block is a run of consecutive draws. The sums over a hundred blocks are kept, and not the draws,
so that the memory does not grow with their number; blocks are what the bootstrap draws again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

_BLOCKS = 100
_REPLICATES = 1000
_TAIL = 0.025
# of the logarithm of an interval: draws that say so little give it no upper end
_ENDLESS = 10.0
_FLAT = 3.84  # the square of 1.96

Interval = tuple[float, float]


@final
@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums over blocks of draws of a gradient's deviation from its first draw.

    ``centre`` is that draw, shape ``[P]``; ``sums`` the sum of deviations over each block,
    ``[B, P]``; ``squares`` that of their squares over each group of elements, ``[B, groups]``;
    ``powers`` the sums of their second to fourth powers over all draws, ``[3, P]``; ``ends`` the
    least and the largest deviation of each element, ``[2, P]``;
    ``sizes`` how many draws a block has, ``[B]``. All in float64; ``precision`` is the rounding
    unit of the draws. ``noiseless``: no generator was asked for them, so that equal draws are all
    there are; else equal draws say that what varies was not met.
    """

    centre: Tensor
    sums: Tensor
    squares: Tensor
    sizes: Tensor
    precision: float
    powers: Tensor
    ends: Tensor
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
    centre = sums = squares = powers = ends = None
    precision, done = 0.0, 0
    for chunk in chunks:
        precision = max(precision, torch.finfo(chunk.dtype).eps)
        chunk = chunk.to("cpu", torch.float64)
        if centre is None or sums is None or squares is None or powers is None or ends is None:
            centre = chunk[0].clone()
            sums = centre.new_zeros(len(sizes), len(centre))
            squares = centre.new_zeros(len(sizes), len(groups))
            powers, ends = centre.new_zeros(3, len(centre)), centre.new_zeros(2, len(centre))
        away = chunk - centre
        place = block_of[done : done + len(away)]
        sums.index_add_(0, place, away)
        total = [away[:, group].square().sum(-1) for group in groups]
        squares.index_add_(0, place, torch.stack(total, -1))
        square = away.square()
        powers += torch.stack([square.sum(0), (square * away).sum(0), square.square().sum(0)])
        ends = torch.stack([ends[0].minimum(away.amin(0)), ends[1].maximum(away.amax(0))])
        done += len(away)
    if centre is None or sums is None or squares is None or powers is None or ends is None:
        raise ValueError(f"no draws: expected {count}")
    if done != count:
        raise ValueError(f"{done} draws: expected {count}")
    counts = torch.tensor(sizes, dtype=torch.float64)
    return BlockSums(centre, sums, squares, counts, precision, powers, ends)


@final
class GroupSums:
    """One group of elements of `BlockSums`: the trace of the covariance, and what it rests on.

    Attributes:
        mean: ``[elements]``.
        variance: the trace of the covariance of one draw.
        exact: there is no noise at all.
        unseen: there may be noise, and all draws are equal.
        drawn: there may be noise.
        variances: of each element, ``[elements]``.
        thirds: the third central moment of each element.
        freedoms: of each variance: so many squares of normal variables have its relative error.
        shares: of the largest draw in each element's sum of squares.
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
        self._set_elements(blocks, columns, shift)
        self.drawn = not blocks.noiseless
        self.exact = blocks.noiseless and self.variance == 0.0
        self.unseen = not blocks.noiseless and self.variance == 0.0

    def _set_elements(self, blocks: BlockSums, columns: Tensor, shift: Tensor) -> None:
        n = self.count
        second, third, fourth = blocks.powers[:, columns] / n
        about = (second - shift**2).clamp(min=0.0)
        self.variances = about * n / (n - 1)
        self.thirds = third - 3 * shift * second + 2 * shift**3
        fourth = fourth - 4 * shift * third + 6 * shift**2 * second - 3 * shift**4
        kurtosis = torch.where(about > 0, fourth / about**2, 3.0)
        self.freedoms = (2 * n / (kurtosis - 1).clamp(min=1e-9)).clamp(1.0, n - 1.0)
        largest = (blocks.ends[:, columns] - shift).square().amax(0)
        self.shares = torch.where(about > 0, largest / (n * about), 0.0)

    @property
    def largest_share(self) -> float:
        """Of the largest block in the sum of squares of the whole group."""
        total = float(self._about.sum())
        return float(self._about.max()) / total if total else 0.0

    @cached_property
    def relative_error(self) -> float:
        """The standard error of the variance, over it."""
        if self.variance == 0.0:
            return 0.0
        ones = torch.ones(1, len(self.sizes), dtype=self.sizes.dtype)
        return float(self._replicated(ones, self._away @ self._away.T)[1]) / self.variance

    def along(self, direction: Tensor) -> Interval:
        """Variance and third central moment of one draw along a direction, from the blocks."""
        norm = direction.norm()
        sums = self._away @ direction / (norm if norm > 0 else 1.0)
        return float(sums.square().sum()) / self.count, float((sums**3).sum()) / self.count

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
        end = self.variance * math.exp(up) if up < _ENDLESS else math.inf
        return self.variance * math.exp(-down), end

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
