"""The code of docs/compare.md runs, and shows what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

PAGE = Path(__file__).parents[2] / "docs/compare.md"


def test_the_code_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "140")
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(compile(block, "docs/compare.md", "exec"), names)
    shown = capsys.readouterr().out
    heads = shown.splitlines()[0].split()
    assert "verdict" in heads
    found = names["found"]
    assert [row.verdict for row in found.rows] == ["", "", "", "biased, as declared", ""]
    assert found.row("DisARM", "guide").group == "guide"
    assert found.means["DisARM"]["phi"].shape == found.references["the ELBO"]["phi"].shape == ()
    plt.close("all")
