"""Layers that take any left dims: Linear, LayerNorm, Embedding, Bilinear, with enumeration."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes, self.both = nn.Embedding(3, 4), nn.Bilinear(2, 4, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, z, k):
        left = torch.broadcast_shapes(z.shape[:-1], k.shape)
        classes = self.classes(k).expand(*left, 4)
        hidden = self.both(z.expand(*left, 2).contiguous(), classes.contiguous())
        return self.last(torch.relu(self.norm(hidden)))


def program() -> Pair:
    decoder, encoder = Decoder(), nn.Linear(5, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z, k), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        logits, loc = encoder(x).split([3, 2], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    loss = am.VariationalLoss(am.ELBO(num_particles=2), {"k": "enumerate"})
    return Pair(model, guide, torch.randn(20, 5), loss)
