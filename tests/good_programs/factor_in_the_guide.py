"""The guide changes variables by hand and adds the log-determinant as a factor."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
        raw = pyro.sample("raw", dist.Normal(loc, scale), infer={"is_auxiliary": True})
        pyro.factor("log_det", -raw, has_rsample=True)
        pyro.sample("rate", dist.Delta(raw.exp()))

    return Pair(model, guide, 0.1 + torch.rand(20))
