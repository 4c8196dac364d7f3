"""Missing entries of a table as latents, by ``obs_mask`` and ``x_unobserved`` in the guide."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, seen):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            filled = pyro.sample("x", dist.Normal(mean, 1.0), obs=x, obs_mask=seen)
            pyro.sample("y", dist.Normal(filled, 0.5), obs=torch.ones(len(x)))

    def guide(x, seen):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(loc, 1.0))
        guess = pyro.param("guess", torch.zeros(len(x)))
        scale = pyro.param("scale", torch.ones(len(x)), constraint=constraints.positive)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~seen):
            pyro.sample("x_unobserved", dist.Normal(guess, scale))

    return Pair(model, guide, (torch.randn(20), torch.arange(20) % 3 > 0))
