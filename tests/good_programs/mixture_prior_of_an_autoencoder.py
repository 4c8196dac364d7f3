"""A variational autoencoder whose prior is a mixture: its classes are summed out in the model."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        decode = pyro.module("decoder", decoder)
        logits = pyro.param("logits", torch.zeros(3))
        locs = pyro.param("locs", torch.randn(3, 2))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[k], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = pyro.module("encoder", encoder)(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, torch.randn(20, 6), am.VariationalLoss(am.IWAE(num_particles=3)))
