"""``nn.Flatten`` keeps dim 0 and flattens the rest, so it folds the rows into the features."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("module-left-dims", names=("Flatten", "model"), remedy="am.Fold")


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 4), nn.Sequential(nn.Flatten(), nn.Linear(4, 6))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc = encoder(x).reshape(-1, 2, 2)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(2))

    return Pair(model, guide, torch.randn(20, 6), am.VariationalLoss(am.ELBO(num_particles=3)))
