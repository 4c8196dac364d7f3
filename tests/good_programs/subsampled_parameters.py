"""``pyro.param`` inside a subsampled plate with ``event_dim``: Pyro hands out the rows in use."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    x = torch.randn(100)

    def model():
        with pyro.plate("data", 100, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[rows])

    def guide():
        with pyro.plate("data", 100, subsample_size=10):
            loc = pyro.param("loc", torch.zeros(100, 2), event_dim=1)
            scale = pyro.param("scale", torch.ones(100, 2), constraints.positive, event_dim=1)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, ())
