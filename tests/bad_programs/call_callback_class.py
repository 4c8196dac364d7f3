"""The class of a callback, not an object of it."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("callbacks", "EarlyStopping", "am.EarlyStopping(...)"))


def call() -> None:
    data = (torch.randn(20, 3), torch.randn(20))
    stop: list = [am.EarlyStopping]
    am.SVI(model, guide).fit(data, data, max_epochs=2, callbacks=stop, progress=False)
