"""Labels as floats, a boolean mask as data, weights of rows by poutine.scale."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y, keep, weight):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep), poutine.scale(scale=weight):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x = torch.randn(20, 3)
    batch = (x, (x[:, 0] > 0).float(), torch.arange(20) % 4 > 0, 0.5 + torch.rand(20))
    return Pair(model, AutoDiagonalNormal(model), batch)
