"""Model and guide share an embedding, and both register it under the same name."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    embedding, encoder = nn.Embedding(4, 2), nn.Linear(2 + 1, 2)

    def model(group, x):
        pyro.module("embedding", embedding)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(embedding(group), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(group, x):
        pyro.module("embedding", embedding)
        pyro.module("encoder", encoder)
        inputs = torch.cat([embedding(group), x.unsqueeze(-1)], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(inputs), 1.0).to_event(1))

    return Pair(model, guide, (torch.arange(20) % 4, torch.randn(20)))
