"""``z.mean()`` without a dim averages over the particles too."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("erased-axes", site="x", remedy="negative dims")


def program() -> Pair:
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.mean(), 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(am.ELBO(num_particles=4)))
