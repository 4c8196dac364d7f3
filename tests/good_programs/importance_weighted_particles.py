"""Fifty particles, and a loop over the columns instead of an event."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z)
            for i in range(x.shape[-1]):
                pyro.sample(f"x_{i}", dist.Cauchy(loc[..., i], 1.0), obs=x[:, i])

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, torch.randn(20, 4), am.VariationalLoss(am.ELBO(num_particles=50)))
