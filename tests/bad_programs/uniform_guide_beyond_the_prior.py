"""A Uniform guide that is wider than the Uniform prior: outside of it the density is zero."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="angle", remedy="Uniform")


def program() -> Pair:
    def model(x):
        angle = pyro.sample("angle", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.sin(angle), 0.5), obs=x)

    def guide(x):
        low = pyro.param("low", torch.tensor(-2.0))
        pyro.sample("angle", dist.Uniform(low, low + 4.0))

    return Pair(model, guide, torch.randn(20))
