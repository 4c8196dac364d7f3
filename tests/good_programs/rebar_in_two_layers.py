"""Dependent layers of bits under REBAR and MuProp, on rows."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    up, top = nn.Linear(6, 3), nn.Linear(3, 2)
    down, bottom = nn.Linear(2, 3), nn.Linear(3, 6)

    def model(x):
        pyro.module("down", down)
        pyro.module("bottom", bottom)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
            a = pyro.sample("a", dist.Bernoulli(logits=down(b)).to_event(1))
            pyro.sample("x", dist.Normal(bottom(a), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("up", up)
        pyro.module("top", top)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=up(x)).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=top(a)).to_event(1))

    estimators = {"a": am.REBAR(), "b": am.MuProp()}
    loss = am.VariationalLoss(estimators=estimators, layout="rows")
    return Pair(model, guide, torch.randn(20, 6), loss)
