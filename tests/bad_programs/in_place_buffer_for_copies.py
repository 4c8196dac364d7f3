"""States are written into a buffer of the batch's size, which has no room for copies."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names="particles", remedy="vectorize=False")


def program() -> Pair:
    def model(x):
        states = torch.zeros(len(x), x.shape[1])
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                states[:, t] = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(states.cumsum(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(x.shape[1]))
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                pyro.sample(f"z_{t}", dist.Normal(loc[t], 1.0))

    return Pair(model, guide, torch.randn(20, 3), am.VariationalLoss(am.ELBO(num_particles=4)))
