"""A list of twenty rows: a list is taken for a tuple of arguments, twenty of them here."""

import torch

import amortized as am
from amortized.errors import AmortizedError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(AmortizedError, ("argument", "20", "stack"))


def call() -> None:
    rows = [torch.randn(3) for _ in range(20)]
    am.SVI(model, guide).fit(rows, max_epochs=1, progress=False)
