"""The data plate got the length of a wrapped batch: ``x[None]`` has one row."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("plate-size", site="x", names=("'data'", "20"), remedy="len(")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len([x])):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
