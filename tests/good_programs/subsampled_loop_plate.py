"""A loop over a subsampled plate: other rows, and so other site names, at every run."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    x = torch.randn(12)

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 12, subsample_size=3):
            z = pyro.sample(f"z_{i}", dist.Normal(mean, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("mean_loc", torch.tensor(0.0)), 0.1))
        locs = pyro.param("locs", torch.zeros(12))
        for i in pyro.plate("data", 12, subsample_size=3):
            pyro.sample(f"z_{i}", dist.Normal(locs[i], 1.0))

    return Pair(model, guide, ())
