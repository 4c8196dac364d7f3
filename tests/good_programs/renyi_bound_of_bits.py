"""A Rényi bound of several weights, with leave-one-out baselines for bits."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 4), nn.Linear(4, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    loss = am.VariationalLoss(am.Renyi(0.5, 4), am.ScoreFunction(am.LeaveOneOut()))
    return Pair(model, guide, torch.randn(20, 6), loss)
