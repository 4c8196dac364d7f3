"""A variational scale is declared, and the guide uses a number instead."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-gradient", names="'scale'", remedy="use", severity="warning")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, 1.0))

    return Pair(model, guide, torch.randn(20))
