r"""What a gradient is worth: the seconds that it takes to make progress.

Adam divides the mean of an estimate :math:`g` by the root of its second moment, so along a gradient
:math:`\nabla\mathcal L` a step of a given rate gains in proportion to
:math:`\lVert\nabla\mathcal L\rVert^2 / \sqrt{E\lVert g\rVert^2}`, and the same progress takes

.. math::
    \text{work} = \text{seconds} \times
        \sqrt{1 + \frac{\text{variance}}{\lVert \nabla\mathcal L\rVert^2}}

Where noise dominates, that is seconds times a standard deviation; where there is hardly any, it is
the seconds, so that an estimate without noise does not win at any price. The root is averaged over
groups of parameters, each on its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch

from amortized.compare.pilot.attempt import Attempt, GroupNoise

# a gain below this is not worth a change
_LEAST_GAIN: Final = 0.05
# a mean gradient is never taken for less than this share of the largest variance
_TINY: Final = 1e-9


@final
@dataclass(frozen=True)
class Work:
    """Seconds times the root of one plus noise, and half the 95 % interval of its logarithm."""

    value: float
    spread: float

    def clearly_less(self, other: Work) -> bool:
        """By more than 5 %, and beyond what is known of both."""
        away = math.log(other.value) - math.log(self.value)
        return away > max(_LEAST_GAIN, math.hypot(self.spread, other.spread))


@final
class Signals:
    """The squared norm of the mean gradient of each group, from the least noisy unbiased means.

    Args:
        share: so much of it counts: below 1 for steps to come, when it is smaller.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.means: dict[str, GroupNoise] = {}
        self._largest: dict[str, float] = {}
        self._ranks: dict[str, tuple[bool, bool, float]] = {}
        self._first: dict[str, GroupNoise] = {}
        self._met: dict[str, set[int]] = {}
        self._varies: set[str] = set()

    def add(self, attempt: Attempt) -> None:
        """Takes a mapping into account."""
        for group, noise in attempt.noise.items():
            self._largest[group] = max(noise.variance, self._largest.get(group, 0.0))
            first = self._first.setdefault(group, noise)
            if not (noise.unseen and torch.equal(noise.mean, first.mean)):
                self._varies.add(group)
            self._met.setdefault(group, set()).add(id(attempt))
            # a mean over which no noise was met may lack what is rare
            rank = noise.unseen, attempt.biased, noise.error
            if group not in self.means or rank < self._ranks[group]:
                self.means[group], self._ranks[group] = noise, rank

    def steps(self, attempt: Attempt) -> tuple[float, float, float]:
        """How many times the steps of a gradient without noise are needed; with an interval.

        The root of one plus variance (and squared bias) over signal, averaged over groups.

        A group whose gradient is always zero says nothing; one that is the same for all mappings
        says the same of all. The interval has no end where noise may be there and was not met.
        """
        found: list[tuple[float, ...]] = []
        for group, noise in attempt.noise.items():
            reference = self.means[group]
            signal = max(self.share * reference.signal, _TINY * self._largest[group])
            if noise.unseen:
                found.append((1.0, 1.0, 1.0 if self._constant(group) else math.inf))
            elif signal > 0.0:
                bias = 0.0 if reference is noise else self._bias(attempt, group)
                parts = (noise.variance, *noise.interval)
                found.append(tuple(math.sqrt(1 + (part + bias) / signal) for part in parts))
        if not found:
            return 1.0, 1.0, 1.0
        value, low, high = (sum(column) / len(found) for column in zip(*found, strict=True))
        return value, low, high

    def _constant(self, group: str) -> bool:
        """No draw of several mappings differs from any other."""
        return group not in self._varies and len(self._met[group]) > 1

    def nearly_noiseless(self, attempt: Attempt) -> bool:
        """Whether even a gradient without noise, in as many seconds, is not worth a change."""
        value, _, high = self.steps(attempt)
        return math.isfinite(high) and math.log(value) <= _LEAST_GAIN

    def work(self, attempt: Attempt) -> Work:
        """Of a mapping that was measured."""
        value, low, high = self.steps(attempt)
        spread = (math.log(high) - math.log(low)) / 2
        return Work(attempt.seconds * value, math.hypot(spread, attempt.spread))

    def _bias(self, attempt: Attempt, group: str) -> float:
        if not attempt.biased:
            return 0.0
        return attempt.noise[group].bias_from(self.means[group])


def best(works: Sequence[Work]) -> int:
    """The place of the best of several, in order of simplicity; the first one is in use.

    Another one has to be clearly better than the first. Of those, the simplest is taken that is not
    clearly worse than the best.
    """
    better = [index for index, work in enumerate(works) if index and work.clearly_less(works[0])]
    if not better:
        return 0
    least = min(better, key=lambda index: works[index].value)
    return next(i for i in better if not works[least].clearly_less(works[i]))


def shares(noise: Mapping[str, GroupNoise], signals: Signals, sites: Sequence[str]) -> list[str]:
    """Sites in order of the noise of their own parameters, largest first.

    A site without parameters of its own counts with the guide's.
    """

    def ratio(site: str) -> float:
        group = f"site {site}" if f"site {site}" in noise else "guide"
        if group not in noise or not signals.means[group].signal:
            return 0.0
        return noise[group].variance / signals.means[group].signal

    return sorted(sites, key=ratio, reverse=True)
