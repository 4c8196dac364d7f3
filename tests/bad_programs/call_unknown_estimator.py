"""An estimator by a name that the literature has and this library has not."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("'score_fuction'", "did you mean", "'score_function'"))


def call() -> None:
    am.VariationalLoss(estimators={"z": "score_fuction"})
