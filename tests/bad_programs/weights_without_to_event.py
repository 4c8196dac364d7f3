"""A global vector of weights: one event in the model, a bare batch in the guide."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("event-shape-mismatch", site="weight", remedy=".to_event(")


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    def guide(x, y):
        pyro.sample("weight", dist.Normal(pyro.param("loc", torch.zeros(3)), 0.1))

    return Pair(model, guide, (torch.randn(20, 3), torch.randn(20)))
