"""AutoNormal for a model with a Categorical latent, which has no continuous guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names="guide", remedy="poutine.block")


def program() -> Pair:
    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    return Pair(model, AutoNormal(model), torch.randn(20))
