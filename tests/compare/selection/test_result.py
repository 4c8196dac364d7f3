import csv
import io
import json

import pytest

import amortized as am
from amortized.compare.pilot.outcome import Row


def selection() -> am.Selection:
    rows = [
        Row(
            *("c", "disarm", "chosen", "0.5 [0.4, 0.6] of the work of moving_average"),
            variance=2.0,
            variance_interval=(1.5, 2.5),
            seconds=1e-3,
            steps=1.25,
            work=1.25e-3,
            draws=32,
        ),
        Row("c", "relaxed", "refused", "biased: why", bias="why"),
    ]
    return am.Selection({"c": am.DisARM()}, {"c": "disarm"}, rows, 0.25, ["a note"])


def test_every_format_has_the_same_rows():
    found = selection()
    assert "2 [1.5, 2.5]" in found.table() and "relaxed (biased)" in found.table("markdown")
    first, second = csv.DictReader(io.StringIO(found.table("csv")))
    assert (first["variance_low"], first["variance_high"]) == ("1.5", "2.5")
    assert second["verdict"] == "refused" and second["variance_low"] == ""
    plain = json.loads(found.table("json"))
    assert plain["estimators"] == {"c": "disarm"} and len(plain["rows"]) == 2
    assert plain["reasons"] == {"c": "0.5 [0.4, 0.6] of the work of moving_average"}


def test_text_and_notebook_say_what_was_chosen():
    found = selection()
    for shown in (str(found), found._repr_html_()):
        assert "a note" in shown and "the pilot took 0.2 s" in shown
    assert "chosen: {'c': 'disarm'}" in str(found)
    assert found._repr_html_().count("<tr>") == 3


def test_a_row_that_is_not_there():
    with pytest.raises(KeyError):
        selection().row("c", "arm")
