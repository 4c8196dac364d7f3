"""Pyro's mixture tutorial as it stands: the assignment is marked in the model, absent in the guide.

Pyro sums it out in the model. That is not there yet, and the way around is to sample the site in
the guide and enumerate it there.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "enumeration-not-happening", site="assignment", remedy=("am.Enumerate()", "guide")
)


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
