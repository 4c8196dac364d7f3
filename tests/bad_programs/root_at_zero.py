"""``sqrt`` of a squared norm at zero: the loss is finite, its gradient NaN."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("non-finite-gradient", names="shift", remedy="sqrt")


def program() -> Pair:
    def model(x):
        shift = pyro.param("shift", torch.zeros(3))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0 + shift.square().sum().sqrt()), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
