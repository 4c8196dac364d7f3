"""A baseline where an estimator is expected: it belongs into a score function."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("LeaveOneOut", "am.ScoreFunction(am.LeaveOneOut())"))


def call() -> None:
    am.VariationalLoss(estimators={"z": am.LeaveOneOut()})  # type: ignore[dict-item]
