"""An objective says what is bounded; what the loss cannot serve yet it refuses."""

from __future__ import annotations

import pytest
from torch import Tensor

import amortized as am
from amortized.objectives.base import Objective


def test_an_objective_must_have_a_bound() -> None:
    class Empty(Objective):
        """Bounds nothing."""

    with pytest.raises(TypeError, match="bound"):
        Empty()  # type: ignore[abstract]


class Tight(Objective):
    """An importance-weighted bound, which charges sites through the bound itself."""

    num_particles = 4
    additive = False
    analytic_kl = False

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.logsumexp(0)


def test_a_bound_that_is_no_sum_is_not_taken_for_an_elbo() -> None:
    """Particles that run one by one would be averaged: a wrong number without a word."""
    with pytest.raises(am.UsageError, match=r"objective=.*all particles at once"):
        am.VariationalLoss(Tight(), vectorize=False)


@pytest.mark.parametrize("wrong", ["elbo", 3, am.ELBO])
def test_what_is_no_objective_is_refused(wrong: object) -> None:
    with pytest.raises(am.UsageError, match=r"objective=.*am\.ELBO\(\)"):
        am.VariationalLoss(wrong)  # type: ignore[arg-type]
