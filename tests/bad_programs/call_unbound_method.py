"""``VAE.guide`` instead of ``vae.guide``: a method without its object."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from amortized.errors import AmortizedError
from tests.catalogue import Refused

EXPECTED = Refused(AmortizedError, ("guide", "argument"))


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def call() -> None:
    vae = VAE()
    am.SVI(vae.model, VAE.guide).fit(torch.randn(20, 3), max_epochs=1, progress=False)
