"""``torch.cat([z, y], -1)`` where z has a particle dim and the observed y does not."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "program-raises", names=("model", "particles"), remedy=("expand", "vectorize=False")
)


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 3), nn.Linear(5, 6)

    def model(x, y):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            loc = decoder(torch.cat([z, y], -1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    batch = (torch.randn(20, 6), torch.eye(2).repeat(10, 1))
    return Pair(model, guide, batch, am.VariationalLoss(am.ELBO(num_particles=4)))
