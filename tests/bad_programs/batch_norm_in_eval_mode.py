"""Batch norm in eval mode is no better under particles: dim 1 still counts as its channels."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("module-left-dims", names=("BatchNorm1d", "model"), remedy="am.Fold")


def program() -> Pair:
    encoder = nn.Linear(6, 8)
    decoder = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 6)).eval()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 6), am.VariationalLoss(am.ELBO(num_particles=4)))
