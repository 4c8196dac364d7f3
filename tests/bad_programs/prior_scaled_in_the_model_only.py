"""The KL is annealed by scaling the latent in the model, and the guide's term is forgotten."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from tests.catalogue import Expected, Pair

EXPECTED = Expected("scale-mismatch", site="z", remedy="kl_weight", severity="warning")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 1.0))

    return Pair(model, guide, torch.randn(20))
