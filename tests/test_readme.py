"""The README's code runs as written, and its two commands do their own set-up."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import amortized

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = dict(
    re.findall(r"^<!-- (\w+) command -->\n```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
)


def test_the_quickstart_has_15_lines() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line]
    assert len(lines) <= 15 and max(map(len, lines)) <= 100


def test_the_code_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(PYTHON[0], "README.md, quickstart", "exec"), names)

    held_out = names["images"][1500:]
    found = names["svi"].evaluate(held_out, num_particles=10)
    # a code has to pay: independent pixels with their own frequencies have -24.0 nats an image
    assert found["elbo"] > -23.0
    assert found["log_evidence"] >= found["elbo"]

    for number, block in enumerate(PYTHON[1:], 2):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"runs"}, "nothing is written unless asked for"


def test_the_commands_do_all_set_up() -> None:
    assert set(COMMANDS) == {"main", "test"}
    for command in COMMANDS.values():
        assert command.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt"
        )


def test_links_to_files_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", README) if "://" not in t]
    assert targets and all((ROOT / target).exists() for target in targets)


def test_the_api_page_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"auto(?:class|exception|function):: (\w+)", page))
    public = {
        name
        for name, thing in vars(amortized).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }
    assert listed == public
