"""The layers of a module are in a Python list, where torch does not find their parameters."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("untrained-module", names="model", remedy="ModuleList", severity="warning")


class Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.hidden = [nn.Linear(2, 4), nn.Linear(4, 4)]
        self.output = nn.Linear(4, 5)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for layer in self.hidden:
                h = torch.tanh(layer(h))
            pyro.sample("x", dist.Normal(self.output(h), 1.0).to_event(1), obs=x)


def program() -> Pair:
    encoder = nn.Linear(5, 2)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(Decoder(), guide, torch.randn(20, 5))
