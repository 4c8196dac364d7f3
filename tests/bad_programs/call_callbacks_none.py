"""None for no callbacks."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(UsageError, ("callbacks=None", "a list"))


def call() -> None:
    svi = am.SVI(model, guide)
    svi.fit(torch.zeros(20), max_steps=1, callbacks=None, progress=False)
