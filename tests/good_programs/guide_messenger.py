"""One of Pyro's guide messengers, which run the model inside the guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormalMessenger

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Pair(model, AutoNormalMessenger(model), torch.randn(20))
