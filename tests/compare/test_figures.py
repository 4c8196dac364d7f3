from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from amortized.compare.figures import variance_bars
from tests.compare.test_result import comparison, row


def test_bars_are_sorted_on_a_log_axis_with_intervals_and_biased_ones_hatched():
    rows = [r for r in comparison().rows if r.group == "guide"]
    rows.append(row("far", variance=50.0, variance_interval=(40.0, float("inf"))))
    ax = variance_bars(rows)
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["sum", "disarm", "relaxed|hard", "far"]
    bars = [patch for patch in ax.patches if patch.get_height() == pytest.approx(0.6)]
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    assert ends == pytest.approx([2.0, 2.0, 50.0])
    assert [bar.get_hatch() for bar in bars] == [None, "///", None]
    assert [text.get_text() for text in ax.texts] == ["no variance"]
    ax.figure.draw_without_rendering()
    plt.close("all")


def test_nothing_varies():
    ax = variance_bars([row(variance=0.0, variance_interval=(0.0, 0.0))])
    ax.figure.draw_without_rendering()
    assert [text.get_text() for text in ax.texts] == ["no variance"]
    plt.close("all")
