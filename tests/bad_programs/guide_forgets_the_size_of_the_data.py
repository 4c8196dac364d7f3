"""The model's plate knows that the batch is a part of 1,000 data, the guide's does not.

The terms of the model are multiplied by 50 and the guide's entropy is not: far too sharp
posteriors, and no error in Pyro.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "plate-mismatch",
    site="z",
    names=("'data'", "1000", "20"),
    remedy="size",
    also=("subsample-mismatch",),
)


def program() -> Pair:
    encoder = nn.Linear(5, 1)
    rows = torch.arange(20)

    def model(x):
        with pyro.plate("data", 1000, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), 1.0))

    return Pair(model, guide, torch.randn(20, 5))
