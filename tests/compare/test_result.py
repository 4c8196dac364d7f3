from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import matplotlib.pyplot as plt
import pytest

from amortized.compare.result import GradientComparison, GradientRow
from amortized.errors import UsageError


def row(candidate: str = "disarm", group: str = "guide", **changes: object) -> GradientRow:
    made = GradientRow(
        candidate=candidate,
        group=group,
        size=3,
        norm=0.5,
        bias=0.01,
        bias_interval=(0.0, 0.02),
        z=0.3,
        p_value=0.76,
        flagged=False,
        declared_bias="",
        variance=2.0,
        variance_interval=(1.8, 2.3),
        snr=0.35,
        seconds=0.001,
        model_evaluations=2,
        peak_bytes=12_300,
        work=0.002,
        work_interval=(0.0018, 0.0023),
    )
    return dataclasses.replace(made, **changes)


def comparison() -> GradientComparison:
    still = {"variance": 0.0, "variance_interval": (0.0, 0.0), "snr": math.inf}
    rows = [
        row(),
        row("relaxed|hard", declared_bias="off by the temperature", flagged=True),
        row("sum", model_evaluations=None, **still),
        row("disarm", "model"),
    ]
    names = dict.fromkeys([r.candidate for r in rows])
    return GradientComparison(
        rows=rows,
        means={name: {} for name in names},
        references={"the ELBO": {}},
        how={"the ELBO": "exact, by enumeration"},
        targets=dict.fromkeys(names, "the ELBO"),
        sampling=dict.fromkeys(names, ""),
        num_draws=1000,
        level=0.01,
    )


def test_a_row_is_found_by_its_names():
    found = comparison()
    assert found.row("disarm", "model").group == "model"
    assert found.groups == ["guide", "model"]
    with pytest.raises(UsageError, match=r"no row of candidate 'arm' and group .*'disarm'"):
        found.row("arm", "guide")


def test_the_verdict_tells_declared_from_found():
    assert row().verdict == ""
    assert row(flagged=True).verdict == "BIASED"
    assert row(declared_bias="x").verdict == "declared biased"
    assert row(flagged=True, declared_bias="x").verdict == "biased, as declared"


def test_text_says_what_was_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")
    text = str(comparison())
    assert "2 [1.8, 2.3]" in text
    assert "reference of the ELBO: exact, by enumeration" in text
    assert "candidate 'relaxed|hard' is biased: off by the temperature" in text
    assert "has the bound" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_csv_and_json_hold_every_number():
    found = comparison()
    read = list(csv.DictReader(io.StringIO(found.table("csv"))))
    assert [float(r["variance_interval_high"]) for r in read] == [2.3, 2.3, 0.0, 2.3]
    assert read[2]["snr"] == "inf"
    data = json.loads(found.table("json"))
    assert data["rows"][2]["snr"] is None
    assert data["rows"][0]["variance_interval"] == [1.8, 2.3]
    assert data["num_draws"] == 1000
    assert found.to_dict()["rows"][2]["snr"] == math.inf


def test_the_figure_is_of_one_group():
    found = comparison()
    _, ax = plt.subplots()
    assert found.plot(ax) is ax
    assert "guide" in ax.get_xlabel()
    other = found.plot(group="model")
    assert "model" in other.get_xlabel()
    with pytest.raises(UsageError, match=r"plot\(group='z'\): expected one of"):
        found.plot(group="z")
    plt.close("all")


def test_intervals_are_read_at_a_glance():
    numbers = {"variance": 37_234.0, "variance_interval": (36_810.0, 37_500.0), "p_value": 0.0}
    cells = dataclasses.replace(comparison(), rows=[row(**numbers)]).sheet().rows[0]
    assert "3.72 [3.68, 3.75] e4" in cells
    assert "<1e-99" in cells
    small = {"variance": 2.5e-7, "variance_interval": (2e-7, math.inf)}
    cells = dataclasses.replace(comparison(), rows=[row(**small)]).sheet().rows[0]
    assert "2.5 [2, unknown] e-7" in cells
    assert "12.3 kB" in cells


def test_heads_are_explained():
    sheet = comparison().sheet()
    explained = " ".join(head for head, _ in sheet.legend)
    assert all(head.split()[0].strip(",") in explained for head in sheet.heads[1:])
