"""A leave-one-out baseline with one sample of one particle: there is nothing to leave out."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="z", remedy=("num_samples=2", "num_particles=2"))


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    single = am.ScoreFunction(am.LeaveOneOut(), num_samples=1)
    return Pair(model, guide, torch.randn(20), am.VariationalLoss(estimators={"z": single}))
