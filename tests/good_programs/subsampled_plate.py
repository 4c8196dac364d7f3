"""A plate that draws its own minibatch, with a local latent for each datum in the guide."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    x = torch.randn(100)

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("mean_loc", torch.tensor(0.0)), 0.1))
        locs = pyro.param("locs", torch.zeros(100))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("z", dist.Normal(locs[rows], 1.0))

    return Pair(model, guide, ())
