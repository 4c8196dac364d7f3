"""A frozen network makes features, as part of the guide and in eval mode; a small head learns."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from tests.catalogue import Pair


class Guide(PyroModule):
    def __init__(self, features):
        super().__init__()
        self.features, self.head = features, nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            features = self.features(x)
        loc, log_scale = self.head(features).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def program() -> Pair:
    features = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval().requires_grad_(False)
    decoder = nn.Linear(1, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Pair(model, Guide(features), torch.randn(20, 5))
