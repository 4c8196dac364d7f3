"""One measurement is missing and stands as NaN."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-nan", site="x", names=("row", "13"), remedy="mask", also=("non-finite-loss",)
)


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    x = torch.randn(20)
    x[13] = torch.nan
    return Pair(model, guide, x)
