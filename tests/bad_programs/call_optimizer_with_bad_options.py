"""An optimizer that refuses its own options."""

import functools

import torch

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(UsageError, ("optimizer", "beta"))


def call() -> None:
    optimizer = functools.partial(torch.optim.Adam, betas=(2.0, 3.0))
    svi = am.SVI(model, guide, optimizer=optimizer)
    svi.fit(torch.ones(20), max_steps=1, progress=False)
