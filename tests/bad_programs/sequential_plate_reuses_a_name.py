"""A loop over a plate without the index in the name of the observed site."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("duplicate-site", site="x", remedy=("name", "x_"))


def program() -> Pair:
    def model(x):
        z = pyro.sample("z", dist.Beta(2.0, 2.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(z), obs=x[i])

    def guide(x):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        b = pyro.param("b", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Beta(a, b))

    return Pair(model, guide, torch.tensor([1.0, 0.0, 1.0, 1.0]))
