"""A Normal guide for a Bernoulli site, to get a gradient through it."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="z", remedy="Bernoulli")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.sigmoid(slope * x), 0.1))

    return Pair(model, guide, torch.randn(20))
