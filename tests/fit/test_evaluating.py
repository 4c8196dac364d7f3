"""Evaluation by several processes is in `test_distributed`; by one in `test_evaluate`."""

from __future__ import annotations

import pytest

import amortized as am
from amortized.fit.evaluating import evaluated
from amortized.programs.records import DataPlate
from tests.fit import tiny
from tests.fit.harness import pair

OPTIONS = {"num_particles": 5, "batch_size": None, "max_rows": 64}


def test_it_is_what_svi_gives() -> None:
    svi = pair()
    svi.step(tiny.data(8))
    found = evaluated(svi._stepper, DataPlate(), tiny.data(20), seed=3, **OPTIONS)
    assert found == svi.evaluate(tiny.data(20), 5, seed=3, max_rows=64)


@pytest.mark.parametrize("wrong", [{"num_particles": 0}, {"max_rows": 0}, {"batch_size": 0}])
def test_bad_counts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(am.UsageError, match="at least 1"):
        evaluated(pair()._stepper, DataPlate(), tiny.data(8), seed=0, **{**OPTIONS, **wrong})
