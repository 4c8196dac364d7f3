"""Guide and model each name the rows of the minibatch, and they name different ones."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("subsample-mismatch", site="z", names="'data'", remedy="subsample=")


def program() -> Pair:
    def model(x, rows):
        with pyro.plate("data", 500, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, rows):
        locs = pyro.param("locs", torch.zeros(500))
        with pyro.plate("data", 500, subsample_size=len(x)) as index:
            pyro.sample("z", dist.Normal(locs[index], 1.0))

    return Pair(model, guide, (torch.randn(8), torch.arange(8)))
