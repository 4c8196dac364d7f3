from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from amortized.compare.training.figures import learning_curves
from tests.compare.training.test_result import comparison, trial


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_a_line_with_a_band_for_each_candidate_and_a_cross_where_a_trial_fails():
    _, ax = plt.subplots()
    assert learning_curves(comparison(), ax) is ax
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["good", "slow", "wild (x: a trial failed)"]
    lines = {line.get_label(): line for line in ax.lines}
    labels = ["good", "slow", "wild"]
    assert list(lines["good"].get_ydata()) == [-9.0, -4.5, -2.5]
    looks = {(lines[name].get_color(), lines[name].get_linestyle()) for name in labels}
    assert len(looks) == 3
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[10.0]]
    thin = [line for line in ax.lines if line.get_linewidth() < 1]
    assert [list(line.get_ydata()) for line in thin] == [[-3.0, -1.0], [-6.0]]
    assert len(ax.collections) == 3
    assert ax.get_xlabel() == "optimizer steps"
    assert ax.get_ylabel() == "validation ELBO\n(nats per data point)"
    ax.figure.draw_without_rendering()


def test_axes_say_what_they_show():
    ax = learning_curves(comparison(held_out=False), against="seconds", metric="log_evidence")
    assert ax.get_xlabel() == "processor seconds of training"
    assert ax.get_ylabel() == "training bound of the log evidence\n(nats per data point)"
    assert learning_curves(comparison(), against="wall").get_xlabel() == "seconds of training"


def test_a_first_climb_does_not_squeeze_the_rest():
    steep = [trial("good", 0, [-500.0, *(-20.0 + 0.1 * i for i in range(20))])]
    ax = learning_curves(comparison(trials=steep, evaluations={"good": 1}))
    assert -25.0 < ax.get_ylim()[0] < -19.0 < ax.get_ylim()[1] < -10.0


def test_more_candidates_than_colours_can_be_told_apart():
    names = [f"c{i}" for i in range(12)]
    trials = [trial(name, 0, [-9.0, -5.0]) for name in names]
    ax = learning_curves(comparison(trials=trials, evaluations=dict.fromkeys(names, 1)))
    looks = {(line.get_color(), str(line.get_linestyle())) for line in ax.lines}
    assert len(looks) >= 10
    ax.figure.draw_without_rendering()


def legend_of(names: list[str]) -> list[str]:
    trials = [trial(name, 0, [-9.0, -5.0]) for name in names]
    ax = learning_curves(comparison(trials=trials, evaluations=dict.fromkeys(names, 1)))
    ax.figure.draw_without_rendering()
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_names_are_shown_whatever_signs_are_in_them():
    names = ["_hidden", "$\\frac$", "cost $5 vs $6", "two\nlines", "", "__"]
    assert legend_of(names) == ["_hidden", "$\\frac$", "cost $5 vs $6", "two lines", '""', "__"]


def test_long_names_leave_room_for_the_curves():
    names = [f"a long name {i} " + "with many words " * 10 + f"end {i}" for i in range(5)]
    shown = legend_of(names)
    assert len(set(shown)) == 5 and all(len(line) <= 30 for s in shown for line in s.split("\n"))
    figure = plt.gcf()
    (ax,) = figure.axes
    box = ax.get_position()
    assert box.width * figure.get_size_inches()[0] > 3.5, "inches for the curves"
    edge = ax.get_legend().get_window_extent().x1
    assert edge <= figure.bbox.x1
