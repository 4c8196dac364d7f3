"""An AutoGuideList: one kind of guide for the effects and another for the scales."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("schools", len(x)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("x", dist.Normal(theta, 10.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["tau"])))
    guide.append(AutoDiagonalNormal(poutine.block(model, hide=["tau"])))
    return Pair(model, guide, torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]))
