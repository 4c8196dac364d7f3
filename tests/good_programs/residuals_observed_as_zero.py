"""A constraint written as an observation: one zero stands for all rows of the plate."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("residual", dist.Laplace(y - slope * x, 1.0), obs=torch.tensor(0.0))

    def guide(x, y):
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))

    return Pair(model, guide, (torch.randn(20), torch.randn(20)))
