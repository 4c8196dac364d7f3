"""``exp`` of an unscaled input is infinite, so the draw is infinite and the loss NaN."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "non-finite-loss",
    site="z",
    remedy="softplus",
    also=("invalid-parameter", "non-finite-gradient"),
)


def program() -> Pair:
    encoder = nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1000.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc = encoder(x.unsqueeze(-1) / 1000).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, x.abs().exp()))

    return Pair(model, guide, torch.linspace(-500.0, 500.0, 20))
