"""A generator of batches: it can be passed over once only, and epochs need more."""

import torch

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("generator", "DataLoader"))


def call() -> None:
    batches = ((torch.randn(5, 3), torch.randn(5)) for _ in range(4))
    am.SVI(model, guide).fit(batches, max_epochs=1, progress=False)
