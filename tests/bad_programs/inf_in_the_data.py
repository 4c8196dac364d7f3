"""The log of a count of zero is minus infinity, and the counts were logged before fitting."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-inf", site="x", names=("row", "11"), remedy="log", also=("non-finite-loss",)
)


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    counts = torch.ones(20)
    counts[11] = 0.0
    return Pair(model, guide, counts.log())
