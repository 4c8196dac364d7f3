"""The code of docs/compare.md runs, and shows what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

PAGE = Path(__file__).parents[2] / "docs/compare.md"


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    plt.close("all")


def test_gradients_are_compared_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "140")
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[0], "docs/compare.md", "exec"), names)
    shown = capsys.readouterr().out
    heads = shown.splitlines()[0].split()
    assert "verdict" in heads
    found = names["found"]
    assert [row.verdict for row in found.rows] == ["", "", "", "biased, as declared", ""]
    assert found.row("DisARM", "guide").group == "guide"
    assert found.means["DisARM"]["phi"].shape == found.references["the ELBO"]["phi"].shape == ()


def test_trainings_are_compared_as_the_page_says(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[1], "docs/compare.md", "exec"), names)
    found = names["trained"]
    assert found.best in ("leave one out", "DisARM")
    assert found.behind("score").value > 0.05
    assert found.time_to("DisARM", -11.0).count == 3
    assert "3 of 3" in capsys.readouterr().out
    assert names["ax"].get_xlabel() == "processor seconds of training"


def test_the_page_explains_every_column():
    page = PAGE.read_text(encoding="utf-8").replace("\\|", "|")
    heads = (
        "group size |mean| |bias| p,_z verdict variance SNR ms evals memory variance_x_s".split()
    )
    assert [head for head in heads if f"\n| {head.replace('_', ' ')} |" not in page] == []
