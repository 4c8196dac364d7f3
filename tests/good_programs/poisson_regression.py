"""Counts with exposure: a Gamma prior on the rate of each group, and a Gamma guide."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(group, exposure, counts):
        with pyro.plate("groups", 3):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("counts", dist.Poisson(rate[group] * exposure), obs=counts)

    def guide(group, exposure, counts):
        a = pyro.param("a", torch.full((3,), 2.0), constraint=constraints.positive)
        b = pyro.param("b", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("groups", 3):
            pyro.sample("rate", dist.Gamma(a, b))

    counts = torch.poisson(torch.full((20,), 2.0))
    return Pair(model, guide, (torch.arange(20) % 3, 0.5 + torch.rand(20), counts))
