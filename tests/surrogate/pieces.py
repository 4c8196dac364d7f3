"""Programs of bits and of normals, and an estimator that keeps what it is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Noise, Site
from amortized.objectives.base import Objective
from amortized.programs.records import Run
from tests.laws.structures import DATA, weight

BITS = [0.0, 1.0]
START = {"a": 0.4, "e": 0.3, "f": 0.1, "b": -0.3, "c": 0.2, "w": 0.7}


def model(size: int = 2) -> None:
    """y -> z in the model, x sees both."""
    with pyro.plate("data", size):
        y = pyro.sample("y", dist.Bernoulli(logits=weight("c", START["c"]).expand(size)))
        z = pyro.sample("z", dist.Bernoulli(logits=weight("b", START["b"]) * y))
        mean = z * weight("w", START["w"]) + y * (1 - z)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=DATA[:size])


def guide(size: int = 2) -> None:
    """z -> y in the guide."""
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Bernoulli(logits=weight("a", START["a"]) * DATA[:size]))
        logits = weight("e", START["e"]) * z + weight("f", START["f"])
        pyro.sample("y", dist.Bernoulli(logits=logits))


def weighted_run() -> Run:
    """A bit that is summed out under three particles, and terms with and without it."""

    def p() -> None:
        z = bit("z", 0.5)
        bonus("value", 10.0 * z)
        bonus("constant", 5.0)

    loss = am.VariationalLoss(am.ELBO(num_particles=3), "enumerate")
    return loss.estimate(p, lambda: bit("z", 0.3), (), {}).run


def normals_by_hand(
    objective: Objective, written: Callable[[Tensor, Tensor], Tensor], *, constant: bool
) -> list[tuple[Tensor, Tensor]]:
    """The loss of a normal pair and its gradients, beside those of a formula on the same draws.

    Args:
        objective: the bound.
        written: the loss from log p and log q, ``[K, 2]`` each.
        constant: whether draws are constants.
    """

    def p() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
            pyro.sample("x", dist.Normal(z * weight("w", 0.7), 1.0), obs=DATA)

    def q() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(weight("a", 0.4) * DATA, weight("s", 0.8)))

    loss = am.VariationalLoss(objective)
    loss.warm_up(p, q, ())
    pyro.set_rng_seed(1)
    value = loss.differentiable_loss(p, q)
    pyro.set_rng_seed(1)
    w, a, s = (pyro.param(name) for name in "was")
    law = dist.Normal(a * DATA, s)
    z = (law.sample if constant else law.rsample)(torch.Size([objective.num_particles]))
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z * w, 1.0).log_prob(DATA)
    by_hand = written(log_p, law.log_prob(z))
    found = [[v.detach(), *torch.autograd.grad(v, [w, a, s])] for v in (value, by_hand)]
    return list(zip(*found, strict=True))


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
