"""A learning rate for a group that does not exist."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("lr", "'encoder'", "model, guide, estimators"))


def call() -> None:
    am.SVI(model, guide, lr={"encoder": 1e-3})
