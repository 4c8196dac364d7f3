"""Enumeration of a vector of twenty bits: a million joint values."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "estimator-unsupported", site="bits", names="1048576", remedy="am.ScoreFunction"
)


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 20), nn.Linear(20, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(torch.full((20,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(bits), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("bits", dist.Bernoulli(logits=encoder(x)).to_event(1))

    loss = am.VariationalLoss(estimators={"bits": am.Enumerate()})
    return Pair(model, guide, torch.randn(20, 5), loss)
