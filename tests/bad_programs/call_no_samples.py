"""A score function with no samples."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("num_samples=0", "at least 1"))


def call() -> None:
    am.ScoreFunction(am.LeaveOneOut(), num_samples=0)
