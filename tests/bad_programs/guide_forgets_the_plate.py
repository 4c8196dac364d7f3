"""The guide samples a local latent for every row, but outside of the model's plate."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "plate-mismatch",
    site="z",
    names="'data'",
    remedy="pyro.plate('data'",
    also=("undeclared-batch-dim",),
)


def program() -> Pair:
    encoder = nn.Linear(5, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), 1.0))

    return Pair(model, guide, torch.randn(20, 5))
