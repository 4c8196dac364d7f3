"""Everything in float64, networks included."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2).double(), nn.Linear(2, 5).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5, dtype=torch.float64))
