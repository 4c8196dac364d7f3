"""An embedding of which a batch uses few rows, and a head that one kind of batch uses only."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.first = nn.Embedding(1000, 2), nn.Linear(2, 2)

    def forward(self, user, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.first(self.user(user)), 1.0).to_event(1))


def program() -> Pair:
    item = nn.Linear(2, 1)

    def model(user, x):
        pyro.module("item", item)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(item(z).squeeze(-1), 1.0), obs=x)

    return Pair(model, Guide(), (torch.arange(20) % 7, torch.randn(20)))
