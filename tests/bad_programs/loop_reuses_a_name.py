"""A loop over time samples the same name at every step."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("duplicate-site", site="z", remedy=("name", "z_"))


def program() -> Pair:
    def model(x):
        z = torch.zeros(())
        for t in range(x.shape[-1]):
            with pyro.plate(f"data_{t}", len(x)):
                z = pyro.sample("z", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        loc = pyro.param("loc", torch.zeros(x.shape[-1]))
        for t in range(x.shape[-1]):
            with pyro.plate(f"data_{t}", len(x)):
                pyro.sample("z", dist.Normal(loc[t], 1.0))

    return Pair(model, guide, torch.randn(20, 3))
