"""A point estimate of probabilities is positive, and does not sum to 1."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="p", names="sum to 1", remedy="constraints.simplex")


def program() -> Pair:
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    def guide(x):
        p = pyro.param("p", torch.ones(3), constraint=constraints.positive)
        pyro.sample("p", dist.Delta(p, event_dim=1))

    return Pair(model, guide, torch.arange(20) % 3)
