"""A horseshoe regression with an AutoLowRankMultivariateNormal guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y):
        tau = pyro.sample("tau", dist.HalfCauchy(1.0))
        with pyro.plate("features", x.shape[-1]):
            local = pyro.sample("lambda", dist.HalfCauchy(1.0))
            beta = pyro.sample("beta", dist.Normal(0.0, tau * local))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    y = (torch.randn(20) > 0).float()
    return Pair(model, AutoLowRankMultivariateNormal(model, rank=2), (torch.randn(20, 4), y))
