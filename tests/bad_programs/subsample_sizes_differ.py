"""Both programs draw minibatches of the same plate, of ten rows and of twenty."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "plate-mismatch",
    site="z",
    names=("'data'", "10", "20"),
    remedy="subsample",
    also=("subsample-mismatch",),
)


def program() -> Pair:
    x = torch.randn(100)

    def model():
        with pyro.plate("data", 100, subsample_size=20) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide():
        locs = pyro.param("locs", torch.zeros(100))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("z", dist.Normal(locs[rows], 1.0))

    return Pair(model, guide, ())
