"""A layer is built and registered, and ``forward`` forgets it."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-gradient", names="hidden", remedy="use", severity="warning")


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, z):
        return self.last(torch.relu(self.first(z)))


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), Decoder()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
