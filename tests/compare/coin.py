"""One Bernoulli with E (b - t)^2, whose variances are known in closed form, and other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortized.estimators.antithetic import DisARM
from amortized.estimators.base import Cost, Draw

P, T = 0.2, 0.45
GRADIENT = -1.6e-2
"""Of the loss: minus that of the bound."""
VARIANCES: Mapping[str, float] = {
    "score_function": 1.276900e-2,
    "leave_one_out": 5.440000e-4,
    "arm": 3.973333e-4,
    "disarm": 3.840000e-4,
}


def phi() -> Tensor:
    return pyro.param("phi", torch.tensor(math.log(P / (1 - P))))


def model() -> None:
    # the prior is the guide's law, without its gradient, so that only the factor is left
    b = pyro.sample("b", dist.Bernoulli(logits=phi().detach()))
    pyro.factor("f", (b - T) ** 2)


def guide() -> None:
    pyro.sample("b", dist.Bernoulli(logits=phi()))


class Broken(DisARM):
    """Two thirds of the gradient."""

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        term: Any = super().surrogate(draw, cost)
        return 2 / 3 * term


Programs = tuple[Callable[..., Any], Callable[..., Any]]


def rare(p: float) -> Programs:
    """A bit that the guide hardly ever draws."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.factor("f", 3 * (b - T) ** 2)

    def guide() -> None:
        start = torch.tensor(math.log(p / (1 - p)))
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("phi", start)))

    return model, guide


def chain() -> Programs:
    """A normal and a categorical that depends on it, four data, two networks."""
    torch.manual_seed(0)
    encoder, head, decoder = torch.nn.Linear(2, 2), torch.nn.Linear(1, 3), torch.nn.Linear(1, 2)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        shifts = pyro.param("shifts", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3)))
            loc = decoder((z + shifts[c]).unsqueeze(-1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("head", head)
        loc, scale = encoder(x).unbind(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, scale.exp()))
            pyro.sample("c", dist.Categorical(logits=head(z.unsqueeze(-1))))

    return model, guide


def chain_batch() -> Tensor:
    return torch.tensor([[0.5, -1.0], [1.5, 0.0], [-0.5, 2.0], [0.0, 0.3]])
