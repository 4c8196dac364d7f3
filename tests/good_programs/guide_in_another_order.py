"""The guide draws its sites in another order than the model, with extra dependence."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    lower, upper = nn.Linear(5, 2), nn.Linear(2, 2)
    up, down = nn.Linear(2, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("up", up)
        pyro.module("down", down)
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            bottom = pyro.sample("bottom", dist.Normal(up(top), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(down(bottom), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("lower", lower)
        pyro.module("upper", upper)
        with pyro.plate("data", len(x)):
            bottom = pyro.sample("bottom", dist.Normal(lower(x), 1.0).to_event(1))
            pyro.sample("top", dist.Normal(upper(bottom), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
