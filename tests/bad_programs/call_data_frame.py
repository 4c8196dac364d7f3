"""A data frame was passed as it is."""

import numpy as np

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("DataFrame", "to_numpy"))


class DataFrame:
    """What matters of one here: its name, its length, and how to get at the numbers."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> np.ndarray:
        return self.values


def call() -> None:
    frame = DataFrame(np.zeros((20, 3)))
    am.SVI(model, guide).fit((frame, np.zeros(20)), max_epochs=1, progress=False)
