"""The code of docs/objectives.md runs, and its objective is what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

import amortized as am
from tests.surrogate.test_bound import exact, mean

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the code of the page leaves behind; the last block is the proof."""
    text = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks[:-1]):
        exec(compile(block, f"docs/objectives.md, block {number}", "exec"), names)
    names["proof"], names["text"] = blocks[-1], blocks[-2]
    return names


def test_the_objective_is_short(page: dict[str, Any]) -> None:
    body = page["text"].partition("class CombinedIWAE")[2].partition("svi = ")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


@pytest.mark.float64
def test_the_proof_holds(page: dict[str, Any]) -> None:
    pyro.clear_param_store()
    exec(compile(page["proof"], "docs/objectives.md, the proof", "exec"), page)


@pytest.mark.float64
def test_the_law_tells_another_bound_apart(page: dict[str, Any]) -> None:
    make = page["CombinedIWAE"]
    found = mean(make(2, share=0.4), {"z": am.ScoreFunction(), "y": am.Enumerate()}, 1)
    truth = exact(make(2, share=0.5), 1)
    assert max(float((f - t).abs().max()) for f, t in zip(found, truth, strict=True)) > 1e-3


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_it_is_captured(mode: str, page: dict[str, Any]) -> None:
    loss = am.VariationalLoss(page["CombinedIWAE"](3), {"c": "disarm"})
    svi = am.SVI(page["model"], page["guide"], loss, compile=mode)  # type: ignore[arg-type]
    svi.fit(page["data"], max_epochs=3, batch_size=64, seed=0, progress=False)
    page.setdefault("fitted", []).append(svi.params())
    first, *others = page["fitted"]
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
