"""One of Pyro's optimizers."""

import pyro

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("optimizer", "torch optimizer class"))


def call() -> None:
    am.SVI(model, guide, optimizer=pyro.optim.Adam({"lr": 1e-3}))
