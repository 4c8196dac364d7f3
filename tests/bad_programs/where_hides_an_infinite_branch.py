"""``torch.where`` picks the harmless branch, but the gradient of the other one is 0 * inf."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("non-finite-gradient", names="rate", remedy="where")


def program() -> Pair:
    def model(x):
        rate = pyro.param("rate", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        bonus = torch.where(rate > 0, rate.log(), torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + bonus, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
