"""A denoising encoder: the guide adds noise to what it reads, from torch, numpy and Python."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder, decoder = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        noisy = x + 0.1 * torch.randn_like(x) + 0.1 * random.random()
        noisy = noisy + 0.1 * torch.tensor(np.random.normal(size=5), dtype=x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(noisy), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 5))
