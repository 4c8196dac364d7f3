"""Columns are divided by their standard deviation, and one of them is constant: 0 / 0 is NaN.

The NaN passes through the encoder and shows as a location that Normal refuses.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="z", names=("loc", "nan"), remedy="NaN")


def program() -> Pair:
    encoder = nn.Linear(5, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scaled = (x - x.mean(0)) / x.std(0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(scaled).squeeze(-1), 1.0))

    x = torch.randn(20, 5)
    x[:, 2] = 7.0
    return Pair(model, guide, x)
