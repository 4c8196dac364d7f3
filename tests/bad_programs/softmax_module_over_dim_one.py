"""``nn.Softmax(dim=1)`` as the last layer of a decoder, under particles."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("erased-axes", site="words", remedy="negative dims")


def program() -> Pair:
    encoder = nn.Linear(6, 3)
    decoder = nn.Sequential(nn.Linear(3, 6), nn.Softmax(dim=1))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            law = dist.Multinomial(probs=decoder(z), validate_args=False)
            pyro.sample("words", law, obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    x = torch.poisson(torch.ones(20, 6))
    return Pair(model, guide, x, am.VariationalLoss(am.ELBO(num_particles=2)))
