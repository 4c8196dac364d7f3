"""Arguments in the order of other libraries: the data first."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("model", "Tensor", "Pyro program"))


def call() -> None:
    am.SVI(torch.randn(20, 3), model, guide)
