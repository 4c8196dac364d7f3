"""A network that nobody registered, under an estimator with leaves of its own."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("untrained-module", names="encoder", remedy="pyro.module", severity="warning")


def program() -> Pair:
    encoder, rows = nn.Linear(6, 1), nn.Embedding(2, 6)

    def model(x):
        pyro.module("rows", rows)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * rows.weight[0], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x).squeeze(-1)))

    loss = am.VariationalLoss(estimators={"z": am.REBAR()})
    return Pair(model, guide, torch.randn(20, 6), loss)
