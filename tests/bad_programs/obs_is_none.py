"""``obs=y`` where ``y`` was not passed: a default of None makes the likelihood a latent.

The signature ``model(x, y=None)`` of Pyro's regression tutorial is meant for prediction.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="y", remedy="obs=")


def program() -> Pair:
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    x = torch.randn(20, 3)
    guide = AutoNormal(model)
    guide(x, torch.zeros(20))
    return Pair(model, guide, x)
