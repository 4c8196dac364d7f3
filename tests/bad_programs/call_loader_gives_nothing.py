"""``drop_last=True`` and a batch size above the number of rows: the loader is empty."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("gave no batch", "drop_last"))


def call() -> None:
    data = TensorDataset(torch.randn(20, 3), torch.randn(20))
    loader = DataLoader(data, batch_size=64, drop_last=True)
    am.SVI(model, guide).fit(loader, max_epochs=1, progress=False)
