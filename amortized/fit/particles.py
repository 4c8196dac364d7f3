"""Running sums over the particles of one batch: bounds of several sizes in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from amortized.estimate import LogWeights


@final
class Particles:
    """What the draws of one batch say of each data point, in float64, shape ``[B]``.

    The bound of K particles is the mean over as many groups of K draws as there are. A chunk may
    hold any number of draws, and only sums are kept.

    Args:
        sizes: every K that is asked for.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.count = 0
        self._bounds = [_Groups(size) for size in sizes]
        self._log_weight = torch.tensor(0.0, dtype=torch.float64)
        self._likelihood = torch.tensor(0.0, dtype=torch.float64)
        self._log_sum = torch.tensor(-math.inf, dtype=torch.float64)
        self._log_squares = torch.tensor(-math.inf, dtype=torch.float64)

    def add(self, chunk: LogWeights) -> None:
        """Takes in the log-weights of ``[k, B]`` more draws."""
        log_weight = (chunk.log_joint - chunk.log_guide).detach().cpu().double()
        self.count += len(log_weight)
        self._log_sum = torch.logaddexp(self._log_sum, log_weight.logsumexp(0))
        self._log_squares = torch.logaddexp(self._log_squares, (2 * log_weight).logsumexp(0))
        self._log_weight = self._log_weight + log_weight.sum(0)
        self._likelihood = self._likelihood + chunk.log_likelihood.detach().cpu().double().sum(0)
        for groups in self._bounds:
            groups.add(log_weight)

    def means(self) -> Tensor:
        """ELBO, reconstruction, effective sample size, and the bound of each size, ``[3 + S, B]``.

        The effective sample size is ``(sum w)^2 / sum w^2``, between 1 and the number of draws; 0
        where every draw is impossible under the model.
        """
        effective = (2 * self._log_sum - self._log_squares).exp()
        effective = effective.masked_fill(self._log_sum == -math.inf, 0.0)
        bounds = [groups.mean() for groups in self._bounds]
        elbo, likelihood = self._log_weight / self.count, self._likelihood / self.count
        return torch.stack([elbo, likelihood, effective, *bounds])


@final
class _Groups:
    """The mean of ``log 1/K sum w`` over groups of K draws."""

    def __init__(self, size: int) -> None:
        self.size, self._filled, self._closed = size, 0, 0
        self._open = torch.tensor(-math.inf, dtype=torch.float64)
        self._total = torch.tensor(0.0, dtype=torch.float64)

    def add(self, log_weight: Tensor) -> None:
        while len(log_weight):
            whole = 0 if self._filled else len(log_weight) // self.size
            if whole:
                taken = whole * self.size
                groups = log_weight[:taken].unflatten(0, (whole, self.size)).logsumexp(1)
                self._total, self._closed = self._total + groups.sum(0), self._closed + whole
            else:
                taken = min(self.size - self._filled, len(log_weight))
                self._open = torch.logaddexp(self._open, log_weight[:taken].logsumexp(0))
                self._filled += taken
                if self._filled == self.size:
                    self._total, self._closed = self._total + self._open, self._closed + 1
                    self._open, self._filled = torch.full_like(self._open, -math.inf), 0
            log_weight = log_weight[taken:]

    def mean(self) -> Tensor:
        return self._total / self._closed - math.log(self.size)
