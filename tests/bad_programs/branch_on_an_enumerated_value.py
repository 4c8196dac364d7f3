"""Python's ``if z:`` on a site that is enumerated: both values are there at once."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names=("model", "'z'"), remedy="vectorize=False")


def program() -> Pair:
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = 3.0 if z else -3.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.0))))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"z": am.Enumerate()}))
