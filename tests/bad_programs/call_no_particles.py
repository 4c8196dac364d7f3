"""``num_particles=0``."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("num_particles=0", "at least 1"))


def call() -> None:
    am.VariationalLoss(am.ELBO(num_particles=0))
