"""``z_0, z_1, ...`` in the model, ``z0, z1, ...`` in the guide."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="z_0", names="'z_3'", remedy="'z0'")


def program() -> Pair:
    def model(x):
        z = torch.zeros(())
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(x):
        locs = pyro.param("locs", torch.zeros(len(x)))
        for t in range(len(x)):
            pyro.sample(f"z{t}", dist.Normal(locs[t], 1.0))

    return Pair(model, guide, torch.randn(4))
