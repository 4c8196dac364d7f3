from amortized.compare.pilot.outcome import Outcome, Row


def test_a_row_that_was_not_measured_has_no_numbers():
    row = Row("c", "disarm", "refused", "why")
    numbers = (row.variance, row.variance_interval, row.seconds, row.steps, row.work)
    assert numbers == (None,) * 5 and row.draws == 0
    assert Outcome({}, {}).rows == []
