"""The variational auto-encoder of Pyro's tutorial, as one module with two methods."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.Softplus(), nn.Linear(12, 16))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(3), x.new_ones(3)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def program() -> Pair:
    vae = VAE()
    return Pair(vae.model, vae.guide, torch.bernoulli(torch.full((20, 16), 0.5)))
