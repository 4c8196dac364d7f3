"""The code of docs/training.md runs as written, after that of the README's quickstart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_code_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    quickstart = blocks("README.md")[0].replace("max_epochs=20", "max_epochs=1")
    assert "max_epochs=1," in quickstart
    found = blocks("docs/training.md")
    for number, block in enumerate([quickstart, *found]):
        exec(compile(block, f"docs/training.md, block {number}", "exec"), names)
    assert len(found) == 4 and {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mine", "saved"}
    assert names["replicas"].shape == (10, 100, 64)
    assert 0.1 < (names["replicas"] != names["images"][:100]).float().mean() < 0.5
    # a class has a tenth of the images: guessing finds 0.1
    logits = names["net"]["classify"](names["images"][1500:])
    right = logits.argmax(-1) == torch.tensor(names["load_digits"]().target[1500:])
    assert right.float().mean() > 0.6
