"""Experts chosen by a sampled gate: in one run some experts get no datum, in others they do."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(6))

    def forward(self, x, k):
        loc = torch.zeros(len(x))
        for i, expert in enumerate(self.experts):
            rows = k == i
            if rows.any():
                loc = torch.where(rows, expert(x).squeeze(-1), loc)
        return loc


def program() -> Pair:
    experts, gate = Experts(), nn.Linear(2, 6)

    def model(x, y):
        pyro.module("experts", experts)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(6) / 6))
            pyro.sample("y", dist.Normal(experts(x, k), 1.0), obs=y)

    def guide(x, y):
        pyro.module("gate", gate)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=gate(x)))

    return Pair(model, guide, (torch.randn(5, 2), torch.randn(5)))
