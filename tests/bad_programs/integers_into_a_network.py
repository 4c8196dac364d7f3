"""Integer data go into a network with float weights."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-dtype", names=("int64", "float32"), remedy=".float()", also=("program-raises",)
)


def program() -> Pair:
    encoder = nn.Linear(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = z.sum(-1, keepdim=True).exp().expand(*z.shape[:-1], 5)
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randint(5, (20, 5)))
