"""``random.random()`` decides whether a datum is observed: a sample statement that nobody sees."""

import random

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("structure-varies", site="y", remedy="pyro.sample", severity="warning")


def program() -> Pair:
    def model(x, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            if random.random() < 0.5:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(x, y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, (torch.randn(20), torch.randn(20)))
