"""The class of an estimator, not an object of it."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("Pathwise", "am.Pathwise()"))


def call() -> None:
    am.VariationalLoss(estimators={"z": am.Pathwise})  # type: ignore[dict-item]
