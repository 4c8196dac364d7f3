"""An inverse autoregressive flow, whose density is known at its own draws only."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder, flow = nn.Linear(5, 4), nn.Linear(2, 5), affine_autoregressive(2, [8])

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("flow", flow)
        loc, log_scale = encoder(x).chunk(2, -1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return Pair(model, guide, torch.randn(20, 5))
