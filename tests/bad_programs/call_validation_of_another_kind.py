"""The training data are a pair and the validation data only its first half."""

import torch

import amortized as am
from amortized.errors import AmortizedError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(AmortizedError, ("val", "argument"))


def call() -> None:
    train = (torch.randn(20, 3), torch.randn(20))
    am.SVI(model, guide).fit(train, torch.randn(8, 3), max_epochs=1, batch_size=5, progress=False)
