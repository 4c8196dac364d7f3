"""A hand-written guide for a layer with PyroSample priors covers the weight and not the bias."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="bias", remedy="pyro.sample('bias'")


def program() -> Pair:
    layer = PyroModule[nn.Linear](3, 1)
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
    layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def model(x, y):
        mean = layer(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(1, 3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(2))

    return Pair(model, guide, (torch.randn(20, 3), torch.randn(20)))
