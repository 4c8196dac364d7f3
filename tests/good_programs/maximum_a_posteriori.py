"""AutoDelta: a point estimate of every latent."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Laplace(torch.zeros(3), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(3.0, x @ weight, sigma), obs=y)

    return Pair(model, AutoDelta(model), (torch.randn(20, 3), torch.randn(20)))
