"""A callback on its own, where a list of them is expected."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("callbacks", "list"))


def call() -> None:
    data, stop = (torch.randn(20, 3), torch.randn(20)), am.EarlyStopping()
    am.SVI(model, guide).fit(data, data, max_epochs=2, callbacks=stop, progress=False)  # type: ignore[arg-type]
