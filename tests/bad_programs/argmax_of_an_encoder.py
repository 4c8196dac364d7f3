"""The class is the argmax of the encoder's output, not a draw from it: no gradient gets through."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-gradient", names="classify", remedy="argmax", severity="warning")


def program() -> Pair:
    classify, table = nn.Linear(5, 3), nn.Embedding(3, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("classify", classify)
        pyro.module("table", table)
        k = classify(x).argmax(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(table(k), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
