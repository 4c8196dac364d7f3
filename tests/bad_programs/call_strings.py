"""A numpy array of strings, such as labels that were not encoded."""

import numpy as np

import amortized as am
from amortized.errors import DataError
from tests.bad_programs.call_lengths_differ import guide, model
from tests.catalogue import Refused

EXPECTED = Refused(DataError, ("data[1]", "<U3"))


def call() -> None:
    labels = np.array(["cat", "dog"] * 10)
    am.SVI(model, guide).fit((np.zeros((20, 3)), labels), max_epochs=1, progress=False)
