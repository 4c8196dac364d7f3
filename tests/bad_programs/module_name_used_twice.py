"""Encoder and decoder are both registered as ``net``: Pyro trains the first to come only."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("parameter-collision", names="'net", remedy="pyro.module")


def program() -> Pair:
    encoder, decoder = nn.Linear(4, 4), nn.Linear(4, 4)

    def model(x):
        pyro.module("net", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 4))
