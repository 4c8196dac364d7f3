"""Two observed sites in plates of their own that share a global latent."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    x, y = torch.randn(12), torch.poisson(torch.ones(30))

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("instruments", 12):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        with pyro.plate("counts", 30):
            pyro.sample("y", dist.Poisson(m.exp()), obs=y)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.0))
        log_scale = pyro.param("log_scale", torch.tensor(-1.0))
        pyro.sample("m", dist.Normal(loc, log_scale.exp()))

    return Pair(model, guide, ())
