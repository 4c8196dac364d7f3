"""The guide subsamples a plate that the model declares in full, as in Pyro's AIR and LDA examples.

Pyro hands the guide's rows to the model's plate of the same name.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    x = torch.randn(60, 5)
    encoder, decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def model():
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[rows])

    def guide():
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=12) as rows:
            loc, log_scale = encoder(x[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, ())
