"""Pyro's mixture tutorial as it stands: the assignment is marked in the model, absent in the guide.

It is summed out exactly, as `TraceEnum_ELBO` does.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta

from tests.catalogue import Pair


def program() -> Pair:
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs"]))
    return Pair(model, guide, torch.randn(20))
