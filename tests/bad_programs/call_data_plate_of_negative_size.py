"""A data set of a negative number of rows."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(UsageError, ("data_plate", "-3"))


def call() -> None:
    svi = am.SVI(model, guide, data_plate=am.DataPlate("data", -3))
    svi.fit(torch.zeros(20), max_steps=1, progress=False)
