"""A missing count was coded as -1 under a Poisson likelihood."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-support", site="counts", names=("Poisson", "row", "7", "-1"), remedy="mask"
)


def program() -> Pair:
    def model(counts):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    def guide(counts):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("rate", dist.Gamma(a, 1.0))

    counts = torch.poisson(torch.full((20,), 3.0))
    counts[7] = -1.0
    return Pair(model, guide, counts)
