"""A Normal guide for a site with a Gamma prior: half of its draws have no density under it."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="rate", remedy="Gamma")


def program() -> Pair:
    def model(counts):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    def guide(counts):
        loc = pyro.param("loc", torch.tensor(3.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("rate", dist.Normal(loc, scale))

    return Pair(model, guide, torch.poisson(torch.full((20,), 3.0)))
