"""Ordered, bounded and simplex parameters, and a low-level Delta for one of them."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 5.0)))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.InverseGamma(3.0, 1.0))
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    def guide(x):
        ordered = dist.constraints.ordered_vector
        locs = pyro.param("locs_point", torch.tensor([-1.0, 0.0, 1.0]), constraint=ordered)
        weights = pyro.param("weights_point", torch.ones(3) / 3, constraint=constraints.simplex)
        scale = pyro.param("s", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
        pyro.sample("weights", dist.Delta(weights).to_event(1))
        pyro.sample("locs", dist.Delta(locs, event_dim=1))
        pyro.sample("scale", dist.Delta(scale))

    return Pair(model, guide, torch.randn(20))
