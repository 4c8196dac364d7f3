"""How terms fold into one scalar."""

from __future__ import annotations

import pytest
import torch

from amortized.surrogate.assemble import assemble
from amortized.surrogate.totals import expectation
from tests.surrogate.pieces import weighted_run

pytestmark = pytest.mark.float64


def test_the_shares_add_up_to_the_bound() -> None:
    run = weighted_run()
    shares = torch.stack([expectation(t, run) for t in run.terms]).sum()
    assert assemble(run).bound.item() == pytest.approx(shares.item())
