"""A hidden Markov model whose states the model sums out, with a latent of the guide beside them."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder = nn.Linear(12, 2)

    def model(x):
        table = pyro.param("transition", torch.eye(3))
        locs = pyro.param("locs", torch.linspace(-1.0, 1.0, 3))
        with pyro.plate("sequences", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            state = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"state_{t}", dist.Categorical(logits=table[state]))
                pyro.sample(f"x_{t}", dist.Normal(locs[state] + shift, 1.0), obs=x[:, t])

    def guide(x):
        loc, log_scale = pyro.module("encoder", encoder)(x).unbind(-1)
        with pyro.plate("sequences", len(x)):
            pyro.sample("shift", dist.Normal(loc, log_scale.exp()))

    model = config_enumerate(poutine.scale(model, scale=1.0))
    return Pair(model, guide, torch.randn(10, 12))
