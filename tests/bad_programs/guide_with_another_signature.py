"""The model takes covariates and targets, the guide covariates only."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names=("guide", "argument"), remedy="same arguments")


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))

    return Pair(model, guide, (torch.randn(20, 3), torch.randn(20)))
