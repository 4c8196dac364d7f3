"""A pathwise estimator for a Bernoulli site, which has no reparameterized draw."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "estimator-unsupported",
    site="z",
    names="Bernoulli",
    remedy=("am.ScoreFunction", "am.Enumerate()"),
)


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"z": am.Pathwise()}))
