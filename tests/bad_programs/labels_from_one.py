"""Labels 1, 2, 3 under a Categorical with three categories, which count from 0."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="y", names=("Categorical", "row", "3"), remedy="from 0")


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(2, 3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(2))

    return Pair(model, guide, (torch.randn(20, 2), torch.arange(20) % 3 + 1))
