"""Early stopping watches the validation loss, and there are no validation data."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("EarlyStopping", "'val_loss'", "val="))


def call() -> None:
    data, stop = (torch.randn(20, 3), torch.randn(20)), am.EarlyStopping()
    am.SVI(model, guide).fit(data, max_epochs=2, batch_size=5, callbacks=[stop], progress=False)
