"""The guide fills in the missing entries under the name of the whole, not ``x_unobserved``."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "missing-in-guide",
    site="x_unobserved",
    remedy="x_unobserved",
)


def program() -> Pair:
    def model(x, seen):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x, obs_mask=seen)

    def guide(x, seen):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0))

    return Pair(model, guide, (torch.randn(20), torch.arange(20) % 3 > 0))
