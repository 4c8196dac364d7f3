"""Batch norm takes dim 1 for its channels: with particles that is the batch, here of equal size."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "module-left-dims", site="x", names="BatchNorm1d", remedy="am.Fold", also=("erased-axes",)
)


def program() -> Pair:
    encoder = nn.Linear(6, 8)
    decoder = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 6))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(8, 6), am.VariationalLoss(am.ELBO(num_particles=4)))
