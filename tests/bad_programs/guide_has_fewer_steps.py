"""The guide's loop over time stops one step early."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="z_3", remedy="pyro.sample('z_3'")


def program() -> Pair:
    def model(x):
        z = torch.zeros(())
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(x):
        locs = pyro.param("locs", torch.zeros(len(x)))
        for t in range(len(x) - 1):
            pyro.sample(f"z_{t}", dist.Normal(locs[t], 1.0))

    return Pair(model, guide, torch.randn(4))
