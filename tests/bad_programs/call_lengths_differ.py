"""Covariates and targets come from two files, one of which has a row less."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import amortized as am
from amortized.errors import DataError
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("unequal lengths", "data[0]", "20", "data[1]", "19"))


def model(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)


def guide(x, y):
    loc = pyro.param("loc", torch.zeros(3))
    pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))


def call() -> None:
    am.SVI(model, guide).fit((np.zeros((20, 3)), np.zeros(19)), max_epochs=1, progress=False)
