"""A class that is enumerated and a style that is reparameterized, which depends on the class."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    classify, style, decoder = nn.Linear(6, 3), nn.Linear(6, 4), nn.Linear(2, 6)
    offsets = nn.Embedding(3, 2)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            prior = dist.Normal(pyro.module("offsets", offsets)(k), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("classify", classify)
        pyro.module("style", style)
        loc, log_scale = style(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=classify(x)))
            shift = nn.functional.one_hot(k, 3)[..., :2].float()
            pyro.sample("z", dist.Normal(loc + shift, log_scale.exp()).to_event(1))

    loss = am.VariationalLoss(estimators={"k": am.Enumerate(), "z": am.Pathwise()})
    return Pair(model, guide, torch.randn(20, 6), loss)
