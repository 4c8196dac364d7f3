"""The same states enumerated in the guide: three values at each of three times."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        table = pyro.param("transition", torch.eye(3))
        locs = pyro.param("locs", torch.linspace(-1.0, 1.0, 3))
        with pyro.plate("sequences", len(x)):
            z = torch.zeros((), dtype=torch.long)
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=table[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3, 3, 3))
        with pyro.plate("sequences", len(x)):
            z = torch.zeros((), dtype=torch.long)
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[t][z]))

    return Pair(model, guide, torch.randn(10, 3), am.VariationalLoss(estimators="enumerate"))
