"""``.data`` on one of the encoder's two heads: the location learns, the scale does not."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

from tests.catalogue import Expected, Pair

EXPECTED = Expected("no-gradient", names="to_scale", remedy=".data", severity="warning")


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.to_loc, self.to_scale = nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x):
        scale = softplus(self.to_scale(x)).data
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.to_loc(x), scale).to_event(1))


def program() -> Pair:
    decoder = nn.Linear(1, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Pair(model, Encoder(), torch.randn(20, 5))
