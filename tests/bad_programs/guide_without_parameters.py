"""A guide of fixed numbers and a model of fixed numbers: there is nothing to fit."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-parameters", names="parameter", remedy="pyro.param")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc, scale = torch.tensor(0.0, requires_grad=True), torch.tensor(1.0)
        pyro.sample("mean", dist.Normal(loc, scale))

    return Pair(model, guide, torch.randn(20))
