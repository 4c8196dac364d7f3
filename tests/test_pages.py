"""The code of the pages runs as pasted: by itself, or after that of the README's quickstart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amortized.cli import main

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code: list[str], page: str) -> dict:
    names: dict = {}
    for number, block in enumerate(code):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_a_page_that_stands_alone() -> None:
    page = "docs/compiled-step.md"
    names = run(blocks(page), page)
    assert names["svi"].params()["slope"] > 0.1


def test_what_the_model_sums_out(capsys: pytest.CaptureFixture[str]) -> None:
    page = "docs/marginalization.md"
    names = run(blocks(page), page)
    history = names["history"]["train_loss"]
    assert history[-1] < 0.7 * history[0]
    table, loss = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "summed out in the model" in table and float(loss) > 0


@pytest.mark.parametrize(
    "page",
    ["docs/check.md", "docs/how-to-choose.md", "docs/migration-from-pyro.md", "docs/quickstart.md"],
)
def test_a_page_that_continues_the_quickstart(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "[quickstart](quickstart.md)" in text or "../README.md" in text
    quickstart = blocks("README.md")[0].replace("max_epochs=20", "max_epochs=1")
    found = blocks(page)
    run([quickstart, *found], page)
    assert found and not any(tmp_path.iterdir())


def test_a_run_of_the_command_line_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(SystemExit) as ended:
        main(["fit", str(ROOT / "examples/vae.py"), "--epochs", "1", "--out", "runs/vae"])
    assert ended.value.code == 0
    page = "docs/command-line.md"
    (block,) = blocks(page)
    run([block], page)
    out = capsys.readouterr().out
    printed, read = re.findall(r"(?:test ELBO|'elbo':) +(-[\d.]+)", out)
    assert abs(float(printed) - float(read)) < 0.1  # other noise
