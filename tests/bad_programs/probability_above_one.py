"""A linear output is used as a probability."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="y", names="probs", remedy="logits")


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.ones(3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))

    return Pair(model, guide, (3.0 * torch.randn(20, 3), torch.ones(20)))
