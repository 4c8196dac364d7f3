"""``pyro.plate("data")`` without a size, as in Pyro's semi-supervised and conditional VAE."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            prior = dist.Normal(x.new_zeros(len(x), 2), x.new_ones(len(x), 2))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data"):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
