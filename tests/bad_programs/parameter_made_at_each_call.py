"""``torch.nn.Parameter`` inside the model: a new one at every call, which no optimizer sees."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("untrained-module", names="model", remedy="pyro.param", severity="warning")


def program() -> Pair:
    def model(x):
        bias = nn.Parameter(torch.zeros(3))
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + bias, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("mean", dist.Normal(loc, 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 3))
