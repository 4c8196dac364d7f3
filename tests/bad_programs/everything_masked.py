"""Model and guide stand under a mask of False, left from a trial: nothing has a gradient."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-gradient", names="the loss", remedy="mask of False")


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = encoder(x).chunk(2, -1)
        scale = nn.functional.softplus(scale)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    off = poutine.mask(model, mask=False), poutine.mask(guide, mask=False)
    return Pair(*off, torch.randn(20, 6))
