"""A Normal guide for a standard deviation with a HalfNormal prior."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "support-mismatch", site="sigma", remedy="HalfNormal", also=("invalid-parameter",)
)


def program() -> Pair:
    def model(x):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, sigma), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("sigma", dist.Normal(loc, scale))

    return Pair(model, guide, torch.randn(20))
