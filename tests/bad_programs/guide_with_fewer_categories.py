"""The guide still has the three categories of an earlier model, which now has four.

The fourth is never drawn, so its component never learns; every number stays finite.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="k", remedy="4", severity="warning")


def program() -> Pair:
    encoder = nn.Linear(1, 3)

    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 4))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=encoder(x.unsqueeze(-1))))

    return Pair(model, guide, torch.randn(20))
