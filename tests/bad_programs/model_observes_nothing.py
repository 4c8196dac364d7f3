"""The likelihood was commented out: nothing ties the latent to the data."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("nothing-observed", remedy="obs=", severity="warning")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 1.0))

    return Pair(model, guide, torch.randn(20))
