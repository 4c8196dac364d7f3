"""Control flow on an enumerated value, evaluated copy by copy with ``vectorize=False``."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        k = pyro.sample("k", dist.Bernoulli(0.5))
        mean = locs[1] if k.item() > 0 else locs[0]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.3))))

    loss = am.VariationalLoss(estimators={"k": am.Enumerate()}, vectorize=False)
    return Pair(model, guide, torch.randn(20), loss)
