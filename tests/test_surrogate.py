"""What each site is charged, per datum, and how terms fold into one scalar."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Noise, Site
from amortized.programs.records import Layout, Run, Term
from amortized.surrogate import assemble, expectation, total

pytestmark = pytest.mark.float64

BITS = [0.0, 1.0]


class Scripted(am.ScoreFunction):
    """The score function with values from a list; keeps what it is charged."""

    def __init__(self, *values: Any, num_samples: int | None = None) -> None:
        super().__init__(num_samples=num_samples)
        self.values = torch.tensor(values if len(values) != 1 else values[0])
        self.charged: list[Cost] = []

    def draw(self, site: Site, noise: Noise) -> Draw:
        count = self.copies(site)
        shape = (*((count,) if count > 1 else ()), *site.law.batch_shape)
        return Draw(site, self.values.expand(shape), count)

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        self.charged.append(cost.detach())
        return super().surrogate(draw, cost)

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self  # the test looks at the recipe itself


def charge(
    model: Any, guide: Any, particles: int = 1, **estimators: Scripted
) -> dict[str, list[float] | float]:
    """What each scripted site was charged in one run."""
    loss = am.VariationalLoss(am.ELBO(particles), dict(estimators))
    loss.warm_up(model, guide, ())
    for estimator in estimators.values():
        estimator.charged.clear()
    loss.estimate(model, guide, (), {})
    return {name: e.charged[-1].copies.squeeze().tolist() for name, e in estimators.items()}


def bit(name: str, probability: float = 0.5, **options: Any) -> Tensor:
    return pyro.sample(name, dist.Bernoulli(torch.tensor(probability)), **options)


def bonus(name: str, value: float | Tensor) -> None:
    pyro.factor(name, torch.as_tensor(value))


def log(value: float) -> float:
    return torch.tensor(value).log().item()


def test_terms_before_a_site_are_not_its_cost() -> None:
    """Same order in both: the later site is not charged for the earlier one."""

    def model() -> None:
        bonus("before", 100.0)
        bit("a", 0.3)
        bonus("between", 10.0)
        bit("b", 0.2)
        bonus("after", 1.0)

    def guide() -> None:
        bit("a", 0.5)
        bit("b", 0.6)

    found = charge(model, guide, a=Scripted(1.0), b=Scripted(1.0))
    of_b = log(0.2) - log(0.6) + 1.0
    assert found["b"] == pytest.approx(of_b)
    assert found["a"] == pytest.approx(of_b + log(0.3) - log(0.5) + 10.0)


def test_what_precedes_a_site_in_the_model_may_depend_on_it_through_the_guide() -> None:
    """guide z -> y, model y -> z: log p(y) comes first and is a cost of z."""

    def model() -> None:
        bonus("before", 100.0)
        bit("y", 0.3)
        bonus("between", 10.0)
        bit("z", 0.2)

    def guide() -> None:
        bit("z", 0.5)
        bit("y", 0.6)

    found = charge(model, guide, z=Scripted(1.0), y=Scripted(1.0))
    both = log(0.3) + log(0.2) - log(0.6) + 10.0
    assert found["z"] == pytest.approx(both - log(0.5))
    assert found["y"] == pytest.approx(both)


def test_auxiliary_sites_are_charged_to_what_they_depend_on() -> None:
    """Trace_ELBO forgets them."""

    def guide() -> None:
        z = bit("z", 0.5)
        pyro.sample("aux", dist.Delta(z, log_density=7.0), infer={"is_auxiliary": True})

    assert charge(lambda: bit("z", 0.5), guide, z=Scripted(1.0))["z"] == pytest.approx(-7.0)


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


def term(value: Any) -> Term:
    return Term("t", "likelihood", torch.as_tensor(value, dtype=torch.float64), frozenset(), 0)


def test_total_sums_plates_and_averages_particles() -> None:
    layout = Layout(nesting=1, num_particles=2)
    terms = [term([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), term([10.0, 20.0, 30.0]), term(100.0)]
    assert total(terms, layout).item() == 21.0 / 2 + 60.0 + 100.0
    assert total([], layout).item() == 0.0


def test_a_plate_as_long_as_the_particles_is_no_particle() -> None:
    layout = Layout(nesting=1, num_particles=2)
    assert total([term([1.0, 2.0])], layout).item() == 3.0


def weighted_run() -> Run:
    def model() -> None:
        z = bit("z", 0.5)
        bonus("value", 10.0 * z)
        bonus("constant", 5.0)

    loss = am.VariationalLoss(am.ELBO(num_particles=3), "enumerate")
    return loss.estimate(model, lambda: bit("z", 0.3), (), {}).run


def test_the_expectation_of_a_term_uses_the_copies_weights() -> None:
    run = weighted_run()
    found = {t.name: expectation(t, run).item() for t in run.terms if t.role == "likelihood"}
    assert found == pytest.approx({"value": 3.0, "constant": 5.0})


def test_the_shares_add_up_to_the_bound() -> None:
    run = weighted_run()
    shares = torch.stack([expectation(t, run) for t in run.terms]).sum()
    assert assemble(run).bound.item() == pytest.approx(shares.item())
