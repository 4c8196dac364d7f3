"""A parameter starts as NaN: the mean of an empty selection."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="mean", names=("loc", "nan"), remedy="NaN")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", x[x > 100].mean())
        pyro.sample("mean", dist.Normal(loc, 1.0))

    return Pair(model, guide, torch.randn(20))
