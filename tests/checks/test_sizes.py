from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.checks.sizes import lacks_data_plate, row_parameters, size_finding
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


def test_observations_without_a_plate() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.randn(())), 1.0))

    state = torch.get_rng_state()
    assert lacks_data_plate(model, guide, tiny.data(8))
    assert not lacks_data_plate(tiny.local_model, tiny.param_guide, tiny.data(8))
    assert not lacks_data_plate(guide, guide, tiny.data(8)), "nothing is observed"
    assert torch.equal(torch.get_rng_state(), state) and len(pyro.get_param_store()) == 0


def test_a_second_size_is_not_compared_copy_by_copy() -> None:
    runs = itertools.count()

    def counted(x: Tensor) -> None:
        next(runs)
        tiny.param_guide(x)

    loss = am.VariationalLoss(am.ELBO(num_particles=8))
    batches = (tiny.data(8), tiny.data(3))
    assert size_finding(tiny.local_model, counted, batches, loss) is None
    assert next(runs) <= 6, "two for each size, and one to see how deep plates nest"


def test_parameters_with_the_rows_of_a_batch() -> None:
    def model(x: Tensor) -> None:
        pyro.module("net", torch.nn.Linear(5, 1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    assert row_parameters(model, per_row, torch.zeros(5), 5) == ["loc"]
    assert row_parameters(model, per_row, torch.zeros(5), 4) == []
    assert dict(pyro.get_param_store()) == {}
