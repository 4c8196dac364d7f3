"""A decentred model: ``poutine.reparam`` with an autoguide on the result."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam

from tests.catalogue import Pair


def program() -> Pair:
    def centred(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 10.0), obs=y)

    model = poutine.reparam(centred, config={"theta": LocScaleReparam()})
    return Pair(model, AutoNormal(model), torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0]))
