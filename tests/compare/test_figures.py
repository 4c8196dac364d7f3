from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from amortized.compare.figures import variance_bars
from tests.compare.test_result import comparison, row


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_points_are_sorted_on_a_log_axis_with_intervals_and_biased_ones_hollow():
    rows = [r for r in comparison().rows if r.group == "guide"]
    rows.append(row("far", variance=50.0, variance_interval=(40.0, float("inf"))))
    ax = variance_bars(rows)
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["sum", "disarm", "relaxed|hard", "far"]
    points = [bars.lines[0] for bars in ax.containers]
    assert [float(p.get_xdata()[0]) for p in points] == [2.0, 2.0, 50.0]
    assert [p.get_markerfacecolor() == "white" for p in points] == [False, True, False]
    ends = [bars.lines[2][0].get_segments()[0][:, 0].tolist() for bars in ax.containers]
    assert ends[0] == pytest.approx([1.8, 2.3]) and ends[2] == pytest.approx([40.0, 50_000.0])
    assert not ax.patches, "a bar on a log axis has no length"
    assert [text.get_text() for text in ax.texts] == ["no variance"]
    ax.figure.draw_without_rendering()


def test_names_are_shown_whatever_signs_are_in_them():
    names = ["$\\frac$", "cost $5 vs $6", "_x", "two\nlines", ""]
    rows = [row(name, "site $z$", variance=1.0 + i) for i, name in enumerate(names)]
    ax = variance_bars(rows)
    ax.figure.draw_without_rendering()
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert shown == ["$\\frac$", "cost $5 vs $6", "_x", "two lines", '""']
    assert ax.get_xlabel() == "variance of the gradient, site $z$ (nats²)"


def test_long_names_leave_room_for_the_points():
    names = [f"a long name {i} " + "with many words " * 10 + f"end {i}" for i in range(5)]
    ax = variance_bars([row(name) for name in names])
    figure = ax.figure
    figure.draw_without_rendering()
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert len(set(shown)) == 5 and all(len(line) <= 30 for s in shown for line in s.split("\n"))
    assert ax.get_position().width * figure.get_size_inches()[0] > 3.0, "inches for the points"
    assert ax.yaxis.get_tightbbox().x0 >= 0


def test_nothing_varies():
    ax = variance_bars([row(variance=0.0, variance_interval=(0.0, 0.0))])
    ax.figure.draw_without_rendering()
    assert [text.get_text() for text in ax.texts] == ["no variance"]


def test_rows_without_a_verdict_are_not_drawn_as_biased():
    rows = [
        row("rare", undecided="too few draws", variance_interval=(1.0, float("inf"))),
        row("nothing met", variance=0.0, variance_interval=(0.0, float("inf"))),
        row("bound", undecided="no reference"),
    ]
    ax = variance_bars(rows)
    points = [bars.lines[0] for bars in ax.containers]
    assert [p.get_markerfacecolor() == "white" for p in points] == [False, False]
    assert ax.get_legend() is None
    assert [text.get_text() for text in ax.texts] == ["too few draws"]
