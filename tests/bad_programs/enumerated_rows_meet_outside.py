"""An enumerated local site is summed outside of its plate: its values cannot be taken apart."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="z", names="'total'", remedy="am.ScoreFunction")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal(z.sum(-1, keepdim=True), 0.1), obs=torch.tensor([7.0]))

    def guide(x):
        logits = pyro.param("logits", torch.zeros(20))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"z": am.Enumerate()}))
