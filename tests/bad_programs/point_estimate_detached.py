"""Maximum a posteriori, and the point goes into the likelihood as a plain number."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta

from tests.catalogue import Expected, Pair

EXPECTED = Expected("detached-latent", site="scale", names="'x'", remedy="detach")


def program() -> Pair:
    def model(x):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, float(scale)), obs=x)

    return Pair(model, AutoDelta(model), torch.randn(20))
