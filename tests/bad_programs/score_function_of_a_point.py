"""A score function for a Delta site: a point mass has no score."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="mean", names="Delta", remedy="am.Pathwise()")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Delta(pyro.param("point", torch.tensor(0.0))))

    loss = am.VariationalLoss(estimators={"mean": "score_function"})
    return Pair(model, guide, torch.randn(20), loss)
