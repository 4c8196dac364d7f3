"""The rows come with the batch, and an autoguide is given the model's plates."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, rows):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 500, subsample=rows):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def plates(x, rows):
        return pyro.plate("data", 500, subsample=rows)

    guide = AutoNormal(model, create_plates=plates)
    return Pair(model, guide, (torch.randn(8), torch.arange(8)))
