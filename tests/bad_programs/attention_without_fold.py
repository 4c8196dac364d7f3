"""Self-attention over a set of latents knows one batch dim only."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("module-left-dims", names=("MultiheadAttention", "model"), remedy="am.Fold")


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, z):
        return self.attention(z, z, z)[0].flatten(-2)


def program() -> Pair:
    encoder, decoder = nn.Linear(12, 12), Decoder()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc = encoder(x).reshape(-1, 3, 4)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(2))

    return Pair(model, guide, torch.randn(20, 12), am.VariationalLoss(am.ELBO(num_particles=2)))
