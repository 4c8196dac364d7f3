"""The signal-to-noise ratio of a random gradient with its error, and the slope of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCKS = 100
Z_95 = 1.96


@dataclass(frozen=True)
class Ratio:
    """A signal-to-noise ratio: the norm of the mean over the square root of the total variance.

    ``square`` is estimated without the bias that the noise of the mean has in the square of its
    norm, so it can be negative where there is no signal to be seen; ``error`` is its standard
    error.
    """

    square: float
    error: float
    draws: int

    @property
    def value(self) -> float:
        return math.sqrt(max(self.square, 0.0))

    @property
    def log_error(self) -> float:
        """The standard error of the ratio's logarithm."""
        return self.error / (2 * self.square) if self.square > 0 else math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, from that of the square."""
        ends = (self.square - Z_95 * self.error, self.square + Z_95 * self.error)
        return math.sqrt(max(ends[0], 0.0)), math.sqrt(max(ends[1], 0.0))


class Moments:
    """Sums of draws and of their squared norms, over blocks of draws."""

    def __init__(self, draws: int, elements: int) -> None:
        self.sums = torch.zeros(BLOCKS, elements, dtype=torch.float64)
        self.squares = torch.zeros(BLOCKS, dtype=torch.float64)
        self.sizes = torch.zeros(BLOCKS, dtype=torch.float64)
        self._block = torch.arange(draws) * BLOCKS // draws
        self._done = 0

    def add(self, chunk: Tensor) -> None:
        """More draws, shape ``[m, elements]``."""
        chunk = chunk.detach().double()
        place = self._block[self._done : self._done + len(chunk)]
        self._done += len(chunk)
        self.sums.index_add_(0, place, chunk)
        self.squares.index_add_(0, place, chunk.square().sum(1))
        self.sizes.index_add_(0, place, torch.ones(len(chunk), dtype=torch.float64))

    def ratio(self) -> Ratio:
        """All draws, and the jackknife over blocks for the error."""
        total, square, size = self.sums.sum(0), self.squares.sum(), self.sizes.sum()
        whole = _squared(total[None], square[None], size[None])
        without = _squared(total - self.sums, square - self.squares, size - self.sizes)
        spread = (without - without.mean()).square().sum() * (BLOCKS - 1) / BLOCKS
        return Ratio(float(whole), float(spread.sqrt()), int(size))


def _squared(sums: Tensor, squares: Tensor, sizes: Tensor) -> Tensor:
    """Of each row; the draws should not be far from zero beside their spread."""
    norm = (sums / sizes[:, None]).square().sum(1)
    variance = (squares - sizes * norm) / (sizes - 1)
    return (norm - variance / sizes) / variance


@dataclass(frozen=True)
class Slope:
    """Of the logarithm of the ratio in the logarithm of K, and half its 95 % interval."""

    value: float
    half: float
    first: int
    last: int


def slope(ratios: Sequence[tuple[int, Ratio]], first: int = 1) -> Slope | None:
    """Weighted least squares over K >= ``first``; None with fewer than three points.

    A point whose logarithm is not known to a factor of two is left out. Where the points do not lie
    on a line, as before the limit of many particles, the interval is widened by how far they miss.
    """
    kept = [(k, r) for k, r in ratios if k >= first and Z_95 * r.log_error < math.log(2)]
    if len(kept) < 3:
        return None
    x = np.log([float(k) for k, _ in kept])
    y = np.log([r.value for _, r in kept])
    weights = np.array([r.log_error**-2 for _, r in kept])
    centre = np.average(x, weights=weights)
    total = float((weights * (x - centre) ** 2).sum())
    value = float((weights * (x - centre) * y).sum()) / total
    missed = y - np.average(y, weights=weights) - value * (x - centre)
    widening = max(1.0, float((weights * missed**2).sum()) / (len(kept) - 2))
    half = Z_95 * math.sqrt(widening / total)
    return Slope(value, half, kept[0][0], kept[-1][0])
