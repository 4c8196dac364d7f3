"""The data set fails at one of its items: a file that cannot be read."""

import torch
from torch.utils.data import DataLoader, Dataset

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("OSError", "item_3.png"))


class Images(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 3:
            raise OSError("cannot read item_3.png")
        return torch.randn(3), torch.tensor(0.0)


def call() -> None:
    loader = DataLoader(Images(), batch_size=10)
    am.SVI(model, guide).fit(loader, max_epochs=1, progress=False)
