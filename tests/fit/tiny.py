"""Small programs with known answers, for the tests of the harness."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints


def local_model(x: Tensor) -> None:
    """z ~ N(0, 1) and x | z ~ N(z, 1) for each datum: log p(x) = log N(x; 0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_guide(x: Tensor) -> None:
    """The posterior of `local_model`."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


def param_guide(x: Tensor) -> None:
    """z ~ N(slope x, scale), both declared with ``pyro.param``."""
    slope = pyro.param("slope", torch.tensor(0.0, dtype=x.dtype))
    scale = pyro.param("scale", torch.tensor(1.0, dtype=x.dtype), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def log_evidence(x: Tensor) -> float:
    """Mean log p(x) of `local_model`."""
    return dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).mean().item()


class ModuleModel(PyroModule):
    """`local_model` with a learned likelihood scale."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)


class ModuleGuide(PyroModule):
    """An amortized guide with one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        loc = self.layer(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.scale))


def global_model(x: Tensor) -> None:
    """One mean for all: m ~ N(0, 1), x | m ~ N(m, 1)."""
    m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def point_guide(value: float) -> Callable[[Tensor], None]:
    """All mass at one learned value of m."""

    def guide(x: Tensor) -> None:
        start = torch.tensor(value, dtype=x.dtype)
        pyro.sample("m", dist.Delta(pyro.param("m_loc", start)))

    return guide


def normal_log_prob(x: Tensor, loc: float) -> Tensor:
    """log N(x; loc, 1)."""
    return -0.5 * (x - loc) ** 2 - 0.5 * math.log(2 * math.pi)


def data(size: int = 40, dtype: torch.dtype | None = None) -> Tensor:
    """Draws of N(0, 2) from a generator of their own."""
    generator = torch.Generator().manual_seed(7)
    return math.sqrt(2.0) * torch.randn(size, generator=generator, dtype=dtype)
