"""Programs of bits, and an estimator that keeps what it is charged."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Noise, Site

pytestmark = pytest.mark.float64

BITS = [0.0, 1.0]


class Scripted(am.ScoreFunction):
    """The score function with values from a list; keeps what it is charged."""

    def __init__(self, *values: Any, num_samples: int | None = None) -> None:
        super().__init__(num_samples=num_samples)
        self.values = torch.tensor(values if len(values) != 1 else values[0])
        self.charged: list[Cost] = []

    def draw(self, site: Site, noise: Noise) -> Draw:
        count = self.copies(site)
        shape = (*((count,) if count > 1 else ()), *site.law.batch_shape)
        return Draw(site, self.values.expand(shape), count)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        self.charged.append(cost.detach())
        return super().surrogate(draw, cost)

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self  # the test looks at the recipe itself


def charge(
    model: Any, guide: Any, particles: int = 1, **estimators: Scripted
) -> dict[str, list[float] | float]:
    """What each scripted site was charged in one run."""
    loss = am.VariationalLoss(am.ELBO(particles), dict(estimators))
    loss.warm_up(model, guide, ())
    for estimator in estimators.values():
        estimator.charged.clear()
    loss.estimate(model, guide, (), {})
    return {name: e.charged[-1].copies.squeeze().tolist() for name, e in estimators.items()}


def bit(name: str, probability: float = 0.5, **options: Any) -> Tensor:
    return pyro.sample(name, dist.Bernoulli(torch.tensor(probability)), **options)


def bonus(name: str, value: float | Tensor) -> None:
    pyro.factor(name, torch.as_tensor(value))


def log(value: float) -> float:
    return torch.tensor(value).log().item()
