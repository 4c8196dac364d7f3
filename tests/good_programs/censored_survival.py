"""Survival times, some of them cut off: densities for the deaths, a factor for the survivors."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(time, died):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5))
        with pyro.plate("patients", len(time)):
            with poutine.mask(mask=died):
                pyro.sample("death", dist.Weibull(scale, shape), obs=time)
            pyro.factor("alive", torch.where(died, 0.0, -((time / scale) ** shape)))

    def guide(time, died):
        for name in ("scale", "shape"):
            loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
            spread = pyro.param(
                f"{name}_spread", torch.tensor(0.1), constraint=constraints.positive
            )
            pyro.sample(name, dist.LogNormal(loc, spread))

    return Pair(model, guide, (0.1 + torch.rand(20), torch.arange(20) % 3 > 0))
