"""Two layers of bits with neural baselines, one of which is given its input."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            law = dist.Bernoulli(logits=self.lower(x)).to_event(1)
            h = pyro.sample("h", law, infer={"baseline_input": x})
            pyro.sample("g", dist.Bernoulli(logits=self.upper(h)).to_event(1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(2))
        self.upper, self.lower = nn.Linear(2, 4), nn.Linear(4, 6)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            g = pyro.sample("g", dist.Bernoulli(logits=self.prior).to_event(1))
            h = pyro.sample("h", dist.Bernoulli(logits=self.upper(g)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.lower(h)).to_event(1), obs=x)


def program() -> Pair:
    x = torch.bernoulli(torch.full((20, 6), 0.5))
    return Pair(Model(), Guide(), x, am.VariationalLoss(estimators="neural_baseline"))
