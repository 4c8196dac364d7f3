"""NaN stands for what is missing, the likelihood is masked, and the encoder gets zeros instead."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            law = dist.Normal(decoder(z), 1.0).mask(~x.isnan())
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.nan_to_num()), 1.0).to_event(1))

    x = torch.randn(20, 5)
    x[3, 2] = x[11, 0] = torch.nan
    return Pair(model, guide, x)
