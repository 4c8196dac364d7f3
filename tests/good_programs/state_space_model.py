"""A local level with a guide that reads the series, sequential sites and pyro.markov."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(y):
        drift = pyro.sample("drift", dist.LogNormal(-1.0, 1.0))
        level = y.new_zeros(())
        for t in pyro.markov(range(len(y))):
            level = pyro.sample(f"level_{t}", dist.Normal(level, drift))
            pyro.sample(f"y_{t}", dist.Normal(level, 1.0), obs=y[t])

    def guide(y):
        pyro.sample("drift", dist.LogNormal(pyro.param("drift_loc", torch.tensor(-1.0)), 0.1))
        gain = pyro.param("gain", torch.tensor(0.5), constraint=constraints.unit_interval)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        level = y.new_zeros(())
        for t in pyro.markov(range(len(y))):
            loc = level + gain * (y[t] - level)
            level = pyro.sample(f"level_{t}", dist.Normal(loc, scale))

    return Pair(model, guide, torch.randn(6).cumsum(0))
