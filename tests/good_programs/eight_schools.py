"""The eight schools with a hand-written guide."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    def guide(y, sigma):
        locs = pyro.param("locs", torch.zeros(10))
        scales = pyro.param("scales", torch.ones(10), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(locs[0], scales[0]))
        pyro.sample("tau", dist.LogNormal(locs[1], scales[1]))
        with pyro.plate("schools", len(y)):
            pyro.sample("eta", dist.Normal(locs[2:], scales[2:]))

    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return Pair(model, guide, (y, sigma))
