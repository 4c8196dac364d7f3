"""``forward`` makes the parameter, and so starts it again at every call."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "untrained-module", names="guide.log_scale", remedy="__init__", severity="warning"
)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 2)

    def forward(self, x):
        self.log_scale = nn.Parameter(torch.zeros(2))
        with pyro.plate("data", len(x)):
            law = dist.Normal(self.encoder(x), self.log_scale.exp())
            pyro.sample("z", law.to_event(1))


def program() -> Pair:
    decoder = nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Pair(model, Guide(), torch.randn(20, 6))
