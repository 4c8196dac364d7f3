"""A rectified rate is exactly zero where counts were seen: log 0 in the likelihood."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "non-finite-loss", site="counts", remedy="softplus", also=("invalid-parameter",)
)


def program() -> Pair:
    def model(x, counts):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("counts", dist.Poisson(torch.relu(slope * x)), obs=counts)

    def guide(x, counts):
        pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.1))

    return Pair(model, guide, (torch.linspace(-1.0, 1.0, 20), torch.ones(20)))
