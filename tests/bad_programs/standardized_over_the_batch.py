"""The latent is standardized over dim 0: rows with one particle, particles with several."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("erased-axes", site="x", remedy="negative dims")


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 3), nn.Linear(3, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            centred = z - z.mean(0)
            pyro.sample("x", dist.Normal(decoder(centred), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 6), am.VariationalLoss(am.ELBO(num_particles=3)))
