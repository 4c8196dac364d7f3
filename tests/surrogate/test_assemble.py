"""How terms fold into one scalar."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import amortized as am
from amortized.surrogate.assemble import assemble
from amortized.surrogate.totals import expectation
from tests.surrogate.pieces import Scripted, bit, bonus, weighted_run

pytestmark = pytest.mark.float64


def test_the_shares_add_up_to_the_bound() -> None:
    run = weighted_run()
    shares = torch.stack([expectation(t, run) for t in run.terms]).sum()
    assert assemble(run).bound.item() == pytest.approx(shares.item())


@pytest.mark.parametrize("options", [{}, {"beta": 0.5}, {"free_bits": {"z": 0.1}}])
def test_copy_by_copy_a_site_is_charged_once(options: dict[str, Any]) -> None:
    """What its KL is, for weights of its own, is known without folding the runs."""
    recipe = Scripted([0.0, 1.0], num_samples=2)
    loss = am.VariationalLoss(am.ELBO(**options), {"z": recipe}, vectorize=False)

    def model() -> None:
        bonus("value", 10.0 * bit("z", 0.5))

    loss.warm_up(model, lambda: bit("z", 0.3), ())
    recipe.charged.clear()
    loss.estimate(model, lambda: bit("z", 0.3), (), {})
    assert len(recipe.charged) == 1
