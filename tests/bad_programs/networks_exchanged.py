"""Encoder and decoder were exchanged in the call."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names=("guide", "Linear"), remedy="shape", places=2)


def program() -> Pair:
    def networks(decoder, encoder):
        return encoder, decoder

    encoder, decoder = networks(nn.Linear(5, 2), nn.Linear(2, 5))

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
