"""A factor in the guide that does not say whether it belongs to a reparameterized draw."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("guide-factor", site="log_det", remedy="has_rsample=")


def program() -> Pair:
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        raw = pyro.sample("raw", dist.Normal(loc, 0.3), infer={"is_auxiliary": True})
        pyro.factor("log_det", -raw)
        pyro.sample("rate", dist.Delta(raw.exp()))

    return Pair(model, guide, 0.1 + torch.rand(20))
