"""Grey values under a Bernoulli, with its validation switched off, as in Pyro's own example."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

import amortized as am
from tests.catalogue import Pair


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(3, 16)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=False)
            pyro.sample("x", pixels.to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(16, 6)

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def program() -> Pair:
    loss = am.VariationalLoss(am.ELBO(num_particles=2, kl="analytic"))
    return Pair(Model(), Guide(), torch.rand(20, 16), loss)
