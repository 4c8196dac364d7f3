"""No data at all: an unnormalized density given by a factor, fitted by a Normal."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model():
        with pyro.poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("energy", -(z[..., 0] ** 2) - 10 * (z[..., 1] - z[..., 0] ** 2) ** 2)

    def guide():
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, ())
