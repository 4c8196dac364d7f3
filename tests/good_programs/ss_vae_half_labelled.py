"""Labelled and unlabelled rows in one batch: ``obs_mask`` and a guide for the rest, sampled."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(8, 3), nn.Embedding(3, 8)

    def model(x, y, seen):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            k = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), obs=y, obs_mask=seen)
            pyro.sample("x", dist.Normal(decoder(k), 1.0).to_event(1), obs=x)

    def guide(x, y, seen):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen):
            pyro.sample("y_unobserved", dist.Categorical(logits=encoder(x)))

    loss = am.VariationalLoss(estimators={"y_unobserved": am.ScoreFunction(am.LeaveOneOut())})
    return Pair(
        model, guide, (torch.randn(20, 8), torch.arange(20) % 3, torch.arange(20) < 5), loss
    )
