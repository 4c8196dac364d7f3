"""A Normal guide for a Beta site: a coin whose probability may be drawn below 0 or above 1."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="fairness", remedy="Beta")


def program() -> Pair:
    def model(flips):
        p = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(flips)):
            pyro.sample("flips", dist.Bernoulli(p), obs=flips)

    def guide(flips):
        pyro.sample("fairness", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.01))

    return Pair(model, guide, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]))
