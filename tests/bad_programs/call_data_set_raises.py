"""A data set that cannot read one of its rows."""

import torch
from torch.utils.data import Dataset

import amortized as am
from amortized.errors import DataError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide


class Torn(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 15:
            raise OSError("input/output error")
        return torch.tensor(0.0)


EXPECTED = Refused(DataError, ("could not be read", "input/output error"))


def call() -> None:
    am.SVI(model, guide).fit(Torn(), max_steps=1, batch_size=20, progress=False)
