"""The guide reads what the model stored on the module; but the guide runs first."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names=("guide", "'hidden'"), remedy="guide runs first")


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 3), nn.Linear(3, 1)

    def model(self, x):
        pyro.module("both", self)
        self.hidden = torch.tanh(self.layer(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("both", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(self.hidden).squeeze(-1), 1.0))


def program() -> Pair:
    both = Both()
    return Pair(both.model, both.guide, torch.randn(20, 5))
