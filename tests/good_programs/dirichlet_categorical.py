"""Shares of categories from labels."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(labels):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("data", len(labels)):
            pyro.sample("labels", dist.Categorical(shares), obs=labels)

    def guide(labels):
        start = torch.ones(4)
        concentration = pyro.param("concentration", start, constraint=constraints.positive)
        pyro.sample("shares", dist.Dirichlet(concentration))

    return Pair(model, guide, torch.arange(20) % 4)
