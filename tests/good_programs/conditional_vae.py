"""A conditional auto-encoder under particles, which expands its condition before ``cat``."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(8, 4), nn.Linear(4, 6)

    def model(x, y):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            inputs = torch.cat([z, y.expand(*z.shape[:-1], 2)], -1)
            pyro.sample("x", dist.Normal(decoder(inputs), 1.0).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(torch.cat([x, y], -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    batch = {"x": torch.randn(20, 6), "y": torch.eye(2).repeat(10, 1)}
    return Pair(model, guide, batch, am.VariationalLoss(am.ELBO(num_particles=5)))
