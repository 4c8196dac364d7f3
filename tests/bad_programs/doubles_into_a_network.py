"""Data that numpy made are float64, the network is float32."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-dtype", names=("float64", "float32"), remedy=".float()", also=("program-raises",)
)


def program() -> Pair:
    encoder = nn.Linear(5, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    data = np.random.default_rng(0).normal(size=(20, 5))
    return Pair(model, guide, torch.from_numpy(data))
