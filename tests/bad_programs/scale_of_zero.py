"""A scale that starts at exactly zero, "to begin with no uncertainty"."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="mean", names="scale", remedy="positive")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc, scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("scale", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(loc, scale))

    return Pair(model, guide, torch.randn(20))
