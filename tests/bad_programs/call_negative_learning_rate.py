"""A learning rate below zero."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("lr=-0.001", "at least 0"))


def call() -> None:
    am.SVI(model, guide, lr=-1e-3)
