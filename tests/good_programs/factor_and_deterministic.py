"""A factor adds a penalty, and deterministic sites name what is worth naming."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        raw = pyro.sample("raw", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        weight = pyro.deterministic("weight", raw.exp(), event_dim=1)
        pyro.factor("sums_to_three", -((weight.sum(-1) - 3.0) ** 2))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", x @ weight)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x.sum(-1))

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        pyro.sample("raw", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, torch.randn(20, 3))
