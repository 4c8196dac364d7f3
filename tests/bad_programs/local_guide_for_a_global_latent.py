"""The guide draws a latent for every row where the model has one for all of them."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "plate-mismatch", site="mean", names="'data'", remedy="plate", also=("undeclared-batch-dim",)
)


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("mean", dist.Normal(slope * x, 1.0))

    return Pair(model, guide, torch.randn(20))
