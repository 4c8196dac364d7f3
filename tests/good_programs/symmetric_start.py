"""A mixture whose components start alike: the weights' gradient is zero at first, by symmetry."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.zeros(3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"k": am.Enumerate()}))
