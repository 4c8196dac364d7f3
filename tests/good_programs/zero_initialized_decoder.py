"""A decoder that starts at zero: the encoder's gradient through it is zero by chance, at first."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 4), nn.Linear(2, 5)
    nn.init.zeros_(decoder.weight)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, torch.randn(20, 5), am.VariationalLoss(am.ELBO(kl="analytic")))
