"""A single number where data points are expected along the first dim."""

import torch

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("data[1]", "single number"))


def call() -> None:
    am.SVI(model, guide).fit((torch.randn(20, 3), torch.tensor(1.0)), max_epochs=1, progress=False)
