"""The code of docs/select.md runs, and shows what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs/select.md"


def test_the_code_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "140")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, "docs/select.md", "exec"), names)
    shown = capsys.readouterr().out
    (said,) = re.findall(r"chosen: {'c': '(\w+)'}", shown)
    assert said == names["chosen"].names["c"] in ("moving_average", "leave_one_out", "enumerate")
    assert "too few to pay for it" in shown.splitlines()[-1]
    assert names["loss"].estimators.recipes.by_pattern.keys() == {"c"}
