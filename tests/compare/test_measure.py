from __future__ import annotations

import random

import pytest

import amortized as am
from amortized.compare.candidates import Ours, Pair
from amortized.compare.groups import trained
from amortized.compare.measure import drawn_again, measure, seconds_a_draw, timed
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
    assert all(0 < value.seconds < 5 for value in seconds.values())


def test_seconds_have_an_interval_of_their_turns():
    again = random.Random(1)
    covered = 0
    for _ in range(300):
        found = timed([again.lognormvariate(0.0, 0.3) for _ in range(25)])
        covered += found.interval[0] <= 1.0 <= found.interval[1]
        assert found.interval[0] <= found.seconds <= found.interval[1]
    assert 0.90 < covered / 300 < 0.99
    assert timed([2.0] * 7).interval == (2.0, 2.0)
