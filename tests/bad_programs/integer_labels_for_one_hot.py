"""Integer labels where OneHotCategorical wants rows of zeros and a one."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "event-shape-mismatch",
    site="y",
    names="OneHotCategorical",
    remedy="one_hot",
)


def program() -> Pair:
    encoder = nn.Linear(5, 2)

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.OneHotCategorical(probs=torch.ones(10) / 10), obs=y)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(5)).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, (torch.randn(20, 5), torch.arange(20) % 10))
