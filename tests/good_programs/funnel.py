"""A funnel without data, as in Pyro's examples of guides for hard geometries."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model():
        y = pyro.sample("y", dist.Normal(0.0, 3.0))
        with pyro.plate("D", 4):
            pyro.sample("x", dist.Normal(0.0, torch.exp(y / 2)))

    return Pair(model, AutoMultivariateNormal(model), ())
