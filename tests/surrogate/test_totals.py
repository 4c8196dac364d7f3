"""The value of terms over plates, particles and copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortized.programs.records import Layout, Term
from amortized.surrogate.totals import expectation, total
from tests.surrogate.pieces import weighted_run

pytestmark = pytest.mark.float64


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


def test_the_expectation_of_a_term_uses_the_copies_weights() -> None:
    run = weighted_run()
    found = {t.name: expectation(t, run).item() for t in run.terms if t.role == "likelihood"}
    assert found == pytest.approx({"value": 3.0, "constant": 5.0})
