"""The guide draws with ``rsample()`` and never tells Pyro: there is no sample statement."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="z", remedy="pyro.sample('z'")


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            return dist.Normal(encoder(x), 1.0).rsample()

    return Pair(model, guide, torch.randn(20, 5))
