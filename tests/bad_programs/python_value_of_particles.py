"""``.item()`` on a latent that has one value for each particle."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names=("model", "particles"), remedy="vectorize=False")


def program() -> Pair:
    def model(x):
        count = pyro.sample("count", dist.Geometric(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(float(count.item()), 1.0), obs=x)

    def guide(x):
        pyro.sample("count", dist.Geometric(logits=pyro.param("logits", torch.tensor(0.0))))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(am.ELBO(num_particles=2)))
