"""``estimators="enumerate"`` for all sites, one of which is continuous."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "estimator-unsupported", site="scale", names="LogNormal", remedy="am.ScoreFunction"
)


def program() -> Pair:
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3.0 * k, scale), obs=x)

    def guide(x):
        pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=slope * x))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators="enumerate"))
