"""The observation comes from ``pyro.condition``, on data that the program closes over."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def scale():
        weight = pyro.sample("weight", dist.Normal(8.5, 1.0))
        return pyro.sample("measurement", dist.Normal(weight, 0.75))

    def guide():
        a = pyro.param("a", torch.tensor(8.5))
        b = pyro.param("b", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(a, b))

    return Pair(pyro.condition(scale, data={"measurement": torch.tensor(9.5)}), guide, ())
