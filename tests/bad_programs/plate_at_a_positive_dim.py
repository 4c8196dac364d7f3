"""A plate's dim counted from the left, as torch's dims often are."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names="model", remedy="negative")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", x.shape[0], dim=0), pyro.plate("columns", x.shape[1], dim=1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20, 3))
