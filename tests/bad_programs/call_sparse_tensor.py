"""A sparse matrix, of which rows cannot be taken."""

import torch

import amortized as am
from amortized.errors import DataError
from tests.catalogue import Refused
from tests.fit.tiny import local_model as model
from tests.fit.tiny import param_guide as guide

EXPECTED = Refused(DataError, ("sparse_coo", "to_dense"))


def call() -> None:
    x = torch.eye(20).to_sparse()
    am.SVI(model, guide).fit(x, max_steps=1, progress=False)
