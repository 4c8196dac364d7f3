"""Convolutions and batch norm under particles, folded where they meet the particles."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        loc, log_scale = self.head(self.features(x)).chunk(2, -1)
        return loc, log_scale.exp()


def program() -> Pair:
    encoder, decoder = Encoder(), am.Fold(nn.ConvTranspose2d(2, 1, 4), event_dim=3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = decoder(z[..., None, None])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    images = torch.bernoulli(torch.full((20, 1, 4, 4), 0.5))
    return Pair(model, guide, images, am.VariationalLoss(am.ELBO(num_particles=3)))
