"""A masked array of numpy's, whose mask would be lost."""

import numpy as np

import amortized as am
from amortized.errors import DataError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(DataError, ("masked array", "obs_mask"))


def call() -> None:
    x = np.ma.masked_array(np.zeros(20), np.arange(20) > 15)
    am.SVI(model, guide).fit(x, max_steps=1, progress=False)
