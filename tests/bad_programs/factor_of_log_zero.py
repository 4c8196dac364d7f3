"""A penalty is the log of a product that underflows to zero."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("non-finite-loss", site="penalty", remedy="log", also=("non-finite-gradient",))


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        density = torch.exp(-0.5 * (x - mean) ** 2).prod()
        pyro.factor("penalty", density.log())

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.linspace(-30.0, 30.0, 20))
