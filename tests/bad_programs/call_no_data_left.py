"""A filter removed every row."""

import torch

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("empty", "at least one"))


def call() -> None:
    x, y = torch.randn(20, 3), torch.randn(20)
    kept = y > 100
    am.SVI(model, guide).fit((x[kept], y[kept]), max_epochs=1, progress=False)
