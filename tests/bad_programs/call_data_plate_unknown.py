"""The data plate has another name in the model."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("data_plate='batch'", "'data'"))


def call() -> None:
    data = (torch.randn(20, 3), torch.randn(20))
    am.SVI(model, guide, data_plate="batch").fit(data, max_epochs=1, progress=False)
