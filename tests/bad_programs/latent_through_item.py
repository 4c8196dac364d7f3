"""A global latent is read with ``.item()``: the guide never hears of the data."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("detached-latent", site="rate", names="'x'", remedy=".item()")


def program() -> Pair:
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate.item()), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("rate", dist.LogNormal(loc, 0.5))

    return Pair(model, guide, torch.rand(20) + 0.1)
