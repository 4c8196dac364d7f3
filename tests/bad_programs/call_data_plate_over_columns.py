"""The data plate named is the one over columns, so its size is not that of the batch."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from amortized.errors import AmortizedError
from tests.catalogue import Refused

EXPECTED = Refused(AmortizedError, ("plate 'columns'", "3", "20", "data_plate"))


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def call() -> None:
    svi = am.SVI(model, guide, data_plate="columns")
    svi.fit(torch.randn(20, 3), max_epochs=1, progress=False)
