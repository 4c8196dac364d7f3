"""The guide was forgotten and the loss stands in its place."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("guide", "VariationalLoss", "Pyro program"))


def call() -> None:
    am.SVI(model, am.VariationalLoss())
