"""A typing error in the guide's site name.

The guide's site has no partner and the model's falls back to the prior.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="latent", remedy=("'latnet'", "mean"))


def program() -> Pair:
    encoder = nn.Linear(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("latnet", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
