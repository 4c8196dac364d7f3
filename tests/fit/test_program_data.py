from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.fit.program_data import (
    data_findings,
    refuse_culprit,
    refuse_image_shape,
    refuse_test,
    try_test,
)
from tests.fit import tiny


@pytest.fixture
def svi() -> am.SVI:
    return am.SVI(tiny.local_model, tiny.param_guide)


def with_nan(*rows: int) -> torch.Tensor:
    x = tiny.data(300).clone()
    x[list(rows)] = math.nan
    return x


def test_data_on_which_the_programs_fail(svi: am.SVI) -> None:
    expected = (
        r"test: found \(\*, 3\) float32 where train has \(\*\) float32, and the programs fail"
    )
    with pytest.raises(am.DataError, match=expected):
        try_test(svi, tiny.data(8), torch.randn(4, 3))
    try_test(svi, tiny.data(8), tiny.data(4).double())
    try_test(svi, tiny.data(8), None)


def test_rows_that_are_not_finite(svi: am.SVI) -> None:
    refuse_test(svi, None)
    refuse_test(svi, with_nan())
    with pytest.raises(am.DataError, match=r"test: site 'x' .* in row 270 of the test data"):
        refuse_test(svi, with_nan(270))


def test_a_loader_is_left_alone_until_its_numbers_are_wrong(svi: am.SVI) -> None:
    loader = DataLoader(TensorDataset(with_nan(270)), 100)
    refuse_test(svi, loader)
    with pytest.raises(am.DataError, match=r"test: site 'x' .*NaN in row 70.*\(rows of this batch"):
        refuse_culprit(svi, loader)
    refuse_culprit(svi, with_nan())


def test_an_image_shape_that_no_site_has() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], torch.ones(6)).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    svi, batch = am.SVI(model, guide), torch.zeros(6, 6)
    for right in (None, (2, 3), (6, 1)):
        refuse_image_shape(svi, batch, right)
    with pytest.raises(am.ProgramError, match=r"\(28, 28\): found site 'x' has 6; expected .* 784"):
        refuse_image_shape(svi, batch, (28, 28))
    for wrong in ((6,), (1, 2, 3), (2.0, 3.0), 6, (-2, -3)):
        with pytest.raises(am.ProgramError, match=r"expected \(height, width\)"):
            refuse_image_shape(svi, batch, wrong)
    assert svi.params() == {}


def test_all_data_of_a_program_are_looked_at() -> None:
    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    def program(train: torch.Tensor, val: object = None, test: object = None) -> am.Program:
        return am.Program(model, tiny.exact_guide, train, val, test)

    good, loss = torch.ones(300), am.VariationalLoss()
    negative, missing = good.clone(), good.clone()
    negative[290], missing[7] = -1.0, math.nan
    assert not [*data_findings(program(good, good, good), loss)]
    found = [*data_findings(program(negative, missing, negative), loss)]
    assert [f.code for f in found] == ["data-support", "data-nan", "data-support"]
    assert ["row 290" in f.found for f in found] == [True, False, True]
    assert found[1].found == "NaN or infinity in row 7 of the validation data"
    assert found[1].where.startswith("val: site 'x'") and found[2].where.startswith("test: site")
    loader = DataLoader(TensorDataset(negative), 100)
    assert not [*data_findings(program(good, loader), loss)]
