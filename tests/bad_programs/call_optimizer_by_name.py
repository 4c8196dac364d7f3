"""An optimizer by its name."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("optimizer", "torch optimizer class"))


def call() -> None:
    am.SVI(model, guide, optimizer="adam")  # type: ignore[arg-type]
