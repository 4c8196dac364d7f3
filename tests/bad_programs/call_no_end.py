"""Neither epochs nor steps nor early stopping: training would never end."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("no end", "max_epochs", "max_steps", "EarlyStopping"))


def call() -> None:
    am.SVI(model, guide).fit((torch.randn(20, 3), torch.randn(20)), progress=False)
