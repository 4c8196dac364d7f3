"""Missing pixels: the encoder turns them into NaN, and the likelihood observes them."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-nan", site="x", names="row 3", remedy="nan_to_num")


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    x = torch.randn(20, 5)
    x[3, 1] = torch.nan
    return Pair(model, guide, x)
