"""Ordinal answers in numpy's types, with an autoguide over cut points."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        law = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        ordered = dist.transforms.OrderedTransform()
        cuts = pyro.sample("cuts", dist.TransformedDistribution(law, [ordered]))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OrderedLogistic(x @ w, cuts), obs=y)

    data = np.linspace(-1.0, 1.0, 40).reshape(20, 2), np.arange(20) % 4
    return Pair(model, AutoNormal(model), data)
