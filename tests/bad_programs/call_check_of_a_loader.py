"""A whole DataLoader for the batch of `am.check`."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import UsageError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(UsageError, ("DataLoader", "next(iter(loader))"))


def call() -> None:
    am.check(model, guide, DataLoader(TensorDataset(torch.zeros(20)), 5))
