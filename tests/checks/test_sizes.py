from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.checks.sizes import size_finding
from tests.fit import tiny


def per_row(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_parameters_with_a_row_for_each_row_of_the_batch() -> None:
    batches = (tiny.data(8), tiny.data(3))
    finding = size_finding(tiny.local_model, per_row, batches, am.VariationalLoss())
    assert finding is not None and finding.code == "batch-size"
    assert "a batch of 3 rows, after one of 8" in finding.where and "subsample=" in finding.advice
    assert len(pyro.get_param_store()) == 0
    right = size_finding(tiny.local_model, tiny.param_guide, batches, am.VariationalLoss())
    assert right is None


def test_fit_looks_at_the_size_of_the_last_batch() -> None:
    svi = am.SVI(tiny.local_model, per_row)
    with pytest.raises(am.ProgramError, match="a batch of 4 rows, after one of 12"):
        svi.fit(tiny.data(40), max_epochs=1, batch_size=12, progress=False)
    svi.fit(tiny.data(40), max_epochs=1, batch_size=40, progress=False)
