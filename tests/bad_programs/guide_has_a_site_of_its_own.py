"""The guide samples a helper variable that the model does not know.

A richer guide by an auxiliary variable is fine, but it has to be marked: unmarked, its density
would be charged against nothing.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-model", site="a", remedy="is_auxiliary")


def program() -> Pair:
    network = nn.Linear(2, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0))
            loc = network(torch.stack([x, a], -1)).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, 0.5))

    return Pair(model, guide, torch.randn(20))
