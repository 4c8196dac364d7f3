"""One of Pyro's losses, as ``pyro.infer.SVI`` takes it."""

from pyro.infer import Trace_ELBO

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("loss", "Trace_ELBO", "am.VariationalLoss"))


def call() -> None:
    am.SVI(model, guide, Trace_ELBO())
