"""The mapping of estimators names a site that does not exist."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-key", names=("'asignment'", "'assignment'"), remedy="'assignment'")


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(20, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("assignment", dist.Categorical(logits=logits))

    loss = am.VariationalLoss(estimators={"asignment": am.Enumerate()})
    return Pair(model, guide, torch.randn(20), loss)
