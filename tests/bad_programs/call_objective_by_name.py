"""An objective by its name."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("objective='elbo'", "am.ELBO()"))


def call() -> None:
    am.VariationalLoss("elbo")  # type: ignore[arg-type]
