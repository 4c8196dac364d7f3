"""Every state of a long chain is enumerated in the guide: copies of dependent sites multiply."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="z_7", names="copies", remedy="am.ScoreFunction")


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 4))
        z = torch.tensor(0)
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=torch.eye(4)[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    def guide(x):
        logits = pyro.param("logits", torch.zeros(4, 4))
        z = torch.tensor(0)
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits[z]))

    return Pair(
        model, guide, torch.randn(9), am.VariationalLoss(estimators={"z_*": am.Enumerate()})
    )
