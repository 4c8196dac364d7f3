"""The pixels of an image are a batch dim of the likelihood: ``.to_event(1)`` is missing."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="image", names="'data'", remedy=".to_event(1)")


def program() -> Pair:
    encoder, decoder = nn.Linear(64, 2), nn.Linear(2, 64)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("image", dist.Bernoulli(logits=decoder(z)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.bernoulli(torch.full((20, 64), 0.5)))
