from __future__ import annotations

import pytest

import amortized as am
from amortized.compare.candidates import Ours, Pair
from amortized.compare.groups import trained
from amortized.compare.measure import drawn_again, measure, seconds_a_draw
from tests.compare import coin


@pytest.mark.float64
def test_a_candidate_is_measured_in_all_its_parameters_and_other_draws_are_others():
    pair = Pair(coin.model, coin.guide, ())
    known = trained(pair, ["phi"])
    found = measure(Ours(am.VariationalLoss(estimators="disarm")), pair, known, 2000)
    assert found.variance(known) == pytest.approx(coin.VARIANCES["disarm"], rel=0.1)
    again = drawn_again(found, known, 100)
    assert again.count == 100
    assert not (again.mean == found.blocks.mean).all()
    seconds = seconds_a_draw({"a": found, "b": found})
    assert seconds.keys() == {"a", "b"}
    assert all(0 < value < 5 for value in seconds.values())
