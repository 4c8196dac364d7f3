"""Both programs take an option besides the data, bound by ``functools.partial``."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(self, x, *, noise):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x, *, noise):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), noise).to_event(1))


def program() -> Pair:
    vae = VAE()
    model, guide = partial(vae.model, noise=0.5), partial(vae.guide, noise=0.5)
    return Pair(model, guide, torch.randn(20, 5))
