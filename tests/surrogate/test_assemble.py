"""How terms fold into one scalar."""

from __future__ import annotations

import pytest
import torch

import amortized as am
from amortized.programs.records import Run
from amortized.surrogate.assemble import assemble
from amortized.surrogate.totals import expectation
from tests.surrogate.pieces import bit, bonus

pytestmark = pytest.mark.float64


def weighted_run() -> Run:
    def model() -> None:
        z = bit("z", 0.5)
        bonus("value", 10.0 * z)
        bonus("constant", 5.0)

    loss = am.VariationalLoss(am.ELBO(num_particles=3), "enumerate")
    return loss.estimate(model, lambda: bit("z", 0.3), (), {}).run


def test_the_shares_add_up_to_the_bound() -> None:
    run = weighted_run()
    shares = torch.stack([expectation(t, run) for t in run.terms]).sum()
    assert assemble(run).bound.item() == pytest.approx(shares.item())
