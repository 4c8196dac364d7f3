"""A transposed convolution knows one batch dim, and particles add another."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("module-left-dims", names=("ConvTranspose2d", "model"), remedy="am.Fold")


def program() -> Pair:
    encoder, decoder = nn.Linear(16, 4), nn.ConvTranspose2d(4, 1, kernel_size=4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            logits = decoder(z.unsqueeze(-1).unsqueeze(-1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.flatten(1)), 1.0).to_event(1))

    images = torch.bernoulli(torch.full((20, 1, 4, 4), 0.5))
    return Pair(model, guide, images, am.VariationalLoss(am.ELBO(num_particles=3)))
