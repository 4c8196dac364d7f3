"""Which terms a site is charged: those that can depend on it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest

from tests.surrogate.pieces import Scripted, bit, bonus, charge, log

pytestmark = pytest.mark.float64


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
