"""``z.reshape(len(x), -1)`` folds the copies of an enumerated site into the features."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("erased-axes", site="x", remedy="negative dims")


def program() -> Pair:
    encoder = nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            on = z.reshape(len(x), -1).sum(1)
            pyro.sample("x", dist.Normal(2.0 * on, 1.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x.unsqueeze(-1)).squeeze(-1)))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"z": am.Enumerate()}))
