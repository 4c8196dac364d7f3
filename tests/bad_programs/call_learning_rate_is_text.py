"""A learning rate read from a file and not converted."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("lr", "'fast'", "number"))


def call() -> None:
    am.SVI(model, guide, lr="fast")  # type: ignore[arg-type]
