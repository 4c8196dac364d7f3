"""The global weights are sampled inside the data plate, in both programs."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="weight", names="'data'", remedy="plate")


def program() -> Pair:
    def model(x, y):
        with pyro.plate("data", len(x)):
            weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("weight", dist.Normal(loc, 1.0))

    return Pair(model, guide, (torch.randn(20, 3), torch.randn(20)))
