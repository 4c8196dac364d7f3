"""``torch.rand``, outside of ``pyro.sample``, decides which of two likelihoods the model uses."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("structure-varies", site="robust", remedy="pyro.sample", severity="warning")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            if torch.rand(()) < 0.5:
                pyro.sample("robust", dist.StudentT(3.0, mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
