"""``max_epochs=0``."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("max_epochs=0", "at least 1"))


def call() -> None:
    data = (torch.randn(20, 3), torch.randn(20))
    am.SVI(model, guide).fit(data, max_epochs=0, progress=False)
