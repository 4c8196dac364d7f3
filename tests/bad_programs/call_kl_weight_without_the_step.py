"""A function of nothing for the weight of the KL."""

import torch

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(UsageError, ("kl_weight", "the step"))


def call() -> None:
    svi = am.SVI(model, guide)
    svi.fit(torch.zeros(20), max_steps=1, kl_weight=lambda: 1.0, progress=False)
