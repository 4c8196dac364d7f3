"""Proportions of exactly 0 and 1 under a Beta likelihood have density zero."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="share", names=("row 2", "Beta"), remedy="data")


def program() -> Pair:
    def model(share):
        a = pyro.sample("a", dist.LogNormal(1.0, 0.1))
        with pyro.plate("data", len(share)):
            pyro.sample("share", dist.Beta(a, 2.0), obs=share)

    def guide(share):
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("a", dist.LogNormal(pyro.param("loc", torch.tensor(1.0)), scale))

    return Pair(model, guide, torch.tensor([0.2, 0.5, 1.0, 0.9]))
