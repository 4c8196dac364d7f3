"""Networks called by ``.forward``, past the hooks of torch, as in Pyro's VAE example."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 5)

    def forward(self, z):
        return self.last.forward(torch.relu(self.first.forward(z)))


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), Decoder()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder.forward(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder.forward(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5), am.VariationalLoss(am.ELBO(num_particles=2)))
