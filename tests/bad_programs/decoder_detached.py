"""The decoder's output is detached: decoder and encoder never learn from the data."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "detached-latent", site="z", names="'x'", remedy="detach", also=("no-gradient",)
)


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z).detach()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
