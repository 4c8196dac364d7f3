"""Logits are passed to Categorical by position, where it takes probabilities."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="k", names="probs", remedy="logits")


def program() -> Pair:
    encoder = nn.Linear(1, 3)

    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(encoder(x.unsqueeze(-1))))

    return Pair(model, guide, torch.randn(20))
