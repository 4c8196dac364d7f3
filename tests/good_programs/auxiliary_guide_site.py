"""A mixture as a guide: an auxiliary component index that the model does not know, marked so."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z**2, 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(2))
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        k = pyro.sample("k", dist.Categorical(logits=logits), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(locs[k], 0.2))

    return Pair(model, guide, torch.rand(20), am.VariationalLoss(estimators={"k": am.Enumerate()}))
