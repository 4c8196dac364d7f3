"""``infer={"estimator": ...}`` at the site, and the KL of bits in closed form."""

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
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            law = dist.Bernoulli(logits=encoder(x)).to_event(1)
            pyro.sample("z", law, infer={"estimator": "leave_one_out"})

    x = torch.bernoulli(torch.full((20, 6), 0.5))
    return Pair(model, guide, x, am.VariationalLoss(am.ELBO(kl="analytic")))
