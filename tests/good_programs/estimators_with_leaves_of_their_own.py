"""Estimators that differentiate the model, or a network of theirs, at values they draw."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    estimators = {
        "a": am.REBAR(),
        "b": am.MuProp(),
        "c": am.RELAX(),
        "d": am.RELAX(),
        "e": am.ARM(),
    }
    encoder, decoder = nn.Linear(6, 5), nn.Linear(5, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            bits = [pyro.sample(n, dist.Bernoulli(torch.tensor(0.5))) for n in "abc"]
            bits.append(pyro.sample("d", dist.Normal(0.0, 1.0)))
            bits.append(pyro.sample("e", dist.Bernoulli(torch.tensor(0.5))))
            z = torch.stack(torch.broadcast_tensors(*bits), -1)
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        numbers = dict(zip("abcde", encoder(x).unbind(-1), strict=True))
        with pyro.plate("data", len(x)):
            for name, number in numbers.items():
                law = dist.Normal(number, 1.0) if name == "d" else dist.Bernoulli(logits=number)
                pyro.sample(name, law)

    return Pair(model, guide, torch.randn(20, 6), am.VariationalLoss(estimators=estimators))
