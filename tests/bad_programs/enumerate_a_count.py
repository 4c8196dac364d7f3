"""Enumeration of a Poisson site, whose support has no end."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="n", names="Poisson", remedy="am.ScoreFunction")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(n, 0.5), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            rate = (slope * x).exp()
            pyro.sample("n", dist.Poisson(rate), infer={"enumerate": "parallel"})

    return Pair(model, guide, torch.rand(20))
