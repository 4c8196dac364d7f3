"""Two functions close over their networks, and neither calls ``pyro.module``."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-parameters", names=("'encoder'", "'decoder'"), remedy="pyro.module")


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
