"""What each site is charged, per datum."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized as am
from tests.surrogate.pieces import BITS, Scripted, bit, bonus, charge

pytestmark = pytest.mark.float64


def test_costs_stay_apart_along_shared_plates_and_add_up_over_others() -> None:
    """Rows carry the latent; columns are summed; what is outside rows goes to every row."""

    def model() -> None:
        with pyro.plate("rows", 2, dim=-2):
            bit("z")
            bonus("row", torch.tensor([[1.0], [2.0]]))
            with pyro.plate("columns", 3, dim=-1):
                bonus("cell", torch.tensor([[10.0, 20.0, 30.0], [100.0, 200.0, 300.0]]))
        with pyro.plate("columns too", 3, dim=-1):
            bonus("column", torch.tensor([1000.0, 2000.0, 3000.0]))

    def guide() -> None:
        with pyro.plate("rows", 2, dim=-2):
            bit("z")

    found = charge(model, guide, z=Scripted(0.0, num_samples=None))
    assert found["z"] == pytest.approx([6061.0, 6602.0])


@pytest.mark.parametrize("size", [2, 20])
def test_costs_are_per_datum_whatever_the_size_of_the_data(size: int) -> None:
    index = torch.arange(2)

    def model() -> None:
        with pyro.plate("data", size, subsample=index):
            bit("z")
            bonus("datum", torch.tensor([1.0, 2.0]))

    def guide() -> None:
        with pyro.plate("data", size, subsample=index):
            bit("z")

    assert charge(model, guide, z=Scripted(0.0))["z"] == pytest.approx([1.0, 2.0])


def test_a_global_site_is_charged_for_the_whole_data_set() -> None:
    def model() -> None:
        bit("z")
        with pyro.plate("data", 20, subsample=torch.arange(2)):
            bonus("datum", torch.tensor([1.0, 2.0]))

    assert charge(model, lambda: bit("z"), z=Scripted(0.0))["z"] == pytest.approx(30.0)


def test_copies_are_charged_apart() -> None:
    def model() -> None:
        z = bit("z")
        bonus("value", 10.0 * z)
        bonus("constant", 100.0)

    found = charge(model, lambda: bit("z"), z=Scripted([0.0, 1.0, 1.0], num_samples=3))
    assert found["z"] == pytest.approx([0.0, 10.0, 10.0]), "what lacks the dim cannot depend"


def test_a_later_site_is_averaged_with_its_own_weights_first() -> None:
    """E over y of (10 y + 100 z y) given each copy of z, where q(y=1) is 0.2 or 0.6."""

    def model() -> None:
        z = bit("z")
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)).mask(False))
        bonus("value", 10.0 * y + 100.0 * z * y)

    def guide() -> None:
        z = bit("z")
        pyro.sample("y", dist.Bernoulli(0.2 + 0.4 * z).mask(False), infer={"enumerate": "parallel"})

    found = charge(model, guide, z=Scripted(BITS, num_samples=2))
    assert found["z"] == pytest.approx([10 * 0.2, 110 * 0.6])


def test_particles_hear_what_the_others_earned() -> None:
    estimator = Scripted([[0.0], [1.0], [1.0]])

    def model() -> None:
        z = bit("z")
        with pyro.plate("data", 2):
            bonus("datum", z * torch.tensor([1.0, 2.0]))

    charge(model, lambda: bit("z"), particles=3, z=estimator)
    cost = estimator.charged[-1]
    assert cost.copies.squeeze().tolist() == pytest.approx([0.0, 3.0, 3.0])
    assert cost.peers is not None
    assert cost.peers.squeeze().tolist() == pytest.approx([3.0, 1.5, 1.5])


def test_what_was_observed_about_a_masked_datum_costs_nothing() -> None:
    mask = torch.tensor([True, False])

    def model() -> None:
        with pyro.plate("data", 2):
            bit("z")
            with poutine.mask(mask=mask):
                bonus("datum", torch.tensor([1.0, 2.0]))

    def guide() -> None:
        with pyro.plate("data", 2):
            bit("z")

    assert charge(model, guide, z=Scripted(0.0))["z"] == pytest.approx([1.0, 0.0])


def outside_the_plate(estimator: Any) -> am.VariationalLoss:
    """A term outside the plate that sums over the plated site."""

    def model() -> None:
        with pyro.plate("data", 2):
            z = bit("z")
        pyro.factor("total", -((z.sum(-1, keepdim=True) - 1.0) ** 2).squeeze(-1).unsqueeze(-1))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])))

    loss = am.VariationalLoss(estimators={"z": estimator})
    loss.loss(model, guide)
    return loss


def test_enumerating_a_plate_that_a_later_term_sums_over_is_refused() -> None:
    """All elements would be at the same value: 1.0 on the diagonal, 0.46 in truth."""
    with pytest.raises(am.ProgramError) as error:
        outside_the_plate("enumerate")
    text = str(error.value)
    assert "site 'z'" in text and "plate 'data'" in text and "'total'" in text
    assert "LeaveOneOut" in text


@pytest.mark.parametrize("estimator", ["leave_one_out", "score_function", "moving_average"])
def test_joint_draws_may_be_summed_over(estimator: str) -> None:
    outside_the_plate(estimator)


def test_the_mean_over_joint_draws_is_right_where_enumeration_is_refused() -> None:
    """E (z1 + z2 - 1)^2 = 0.46 for probabilities 0.3 and 0.6."""
    samples = 4000

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])))
        bonus("total", (z.sum(-1, keepdim=True) - 1.0) ** 2)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])))

    estimators = {"z": am.ScoreFunction(am.LeaveOneOut(), num_samples=samples)}
    value = -am.VariationalLoss(estimators=estimators).loss(model, guide)
    assert value == pytest.approx(0.46, abs=4 * 0.5 / samples**0.5)
