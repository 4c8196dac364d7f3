"""Rows are series and columns times; the plates stand the other way round, with dims given."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        with pyro.plate("series", x.shape[0], dim=-1):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            with pyro.plate("time", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal(level, 1.0), obs=x.T)

    def guide(x):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("series", x.shape[0], dim=-1):
            pyro.sample("level", dist.Normal(weight * x.mean(-1), 0.3))

    return Pair(model, guide, torch.randn(20, 4))
