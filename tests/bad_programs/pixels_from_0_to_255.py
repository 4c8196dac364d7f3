"""Raw pixel bytes as floats under a Bernoulli likelihood."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="x", names=("Bernoulli", "row"), remedy="255")


def program() -> Pair:
    encoder, decoder = nn.Linear(16, 2), nn.Linear(2, 16)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x / 255), 1.0).to_event(1))

    return Pair(model, guide, torch.randint(256, (20, 16)).float())
