"""A frozen network that the guide closes over without registering it: it is not to be trained."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    features = nn.Linear(5, 4).requires_grad_(False)
    head, decoder = nn.Linear(4, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("head", head)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(head(features(x)), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
