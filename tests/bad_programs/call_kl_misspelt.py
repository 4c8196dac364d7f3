"""``kl="analytical"``."""

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("kl='analytical'", "'analytic'"))


def call() -> None:
    am.ELBO(kl="analytical")  # type: ignore[arg-type]
