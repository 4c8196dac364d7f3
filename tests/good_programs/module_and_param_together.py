"""A guide function with a network and bare parameters, some used only through a clamp."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    encoder = nn.Linear(5, 1)

    def model(x):
        tau = pyro.param("tau", torch.tensor(2.0), constraint=constraints.positive)
        scale = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, tau))
            law = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 5), scale.clamp(min=0.01))
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        spread = pyro.param("spread", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), spread.clamp(-3, 3).exp()))

    return Pair(model, guide, torch.randn(20, 5))
