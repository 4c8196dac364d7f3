"""A regressor is NaN in one row; the targets are fine."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-nan",
    names=("row", "17", "'x'"),
    remedy="row",
    also=("non-finite-loss", "invalid-parameter"),
)


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))

    x = torch.randn(20, 3)
    x[17, 1] = torch.nan
    return Pair(model, guide, {"x": x, "y": torch.randn(20)})
