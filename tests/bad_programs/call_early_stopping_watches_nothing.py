"""Early stopping watches a number under a name of another library."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(UsageError, ("EarlyStopping", "'elbo_validation'", "val_loss"))


def call() -> None:
    data, stop = (torch.randn(20, 3), torch.randn(20)), am.EarlyStopping("elbo_validation")
    am.SVI(model, guide).fit(
        data, data, max_epochs=2, batch_size=5, callbacks=[stop], progress=False
    )
