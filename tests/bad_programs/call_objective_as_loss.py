"""An objective where the loss is expected: it has to be wrapped."""

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("loss", "ELBO", "am.VariationalLoss("))


def call() -> None:
    am.SVI(model, guide, am.ELBO(num_particles=4))
