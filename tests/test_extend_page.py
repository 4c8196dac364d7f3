"""The estimator of docs/extend.md is what the page says: served, refused, unbiased, captured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators.base import Site
from tests.laws.structures import EVERY
from tests.laws.test_unbiased import error

ROOT = Path(__file__).parents[1]


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the code of the page leaves behind; the last block is the proof."""
    text = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"text": blocks[0]}
    for number, block in enumerate(blocks[:2]):
        exec(compile(block, f"docs/extend.md, block {number}", "exec"), names)
    names["printed"], names["proof"] = capsys.readouterr().out, blocks[2]
    return names


def test_it_is_short_and_is_served(page: dict[str, Any]) -> None:
    body = page["text"].partition("class SelfCritical")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 25
    assert "SelfCritical()" in page["printed"] and "mapping 'b'" in page["printed"]
    refusal = page["SelfCritical"]().refusal(Site("z", dist.Poisson(1.0)))
    assert "Poisson is no Bernoulli" in refusal


@pytest.mark.float64
def test_the_proof_holds_and_a_mutant_fails_it(page: dict[str, Any]) -> None:
    exec(compile(page["proof"], "docs/extend.md, the proof", "exec"), page)

    class Mutant(page["SelfCritical"]):  # type: ignore[misc]
        def surrogate(self, draw: Any, cost: Any) -> torch.Tensor:
            return -super().surrogate(draw, cost)

    pair = EVERY["plate"]("bernoulli")
    pyro.clear_param_store()
    assert error(am.VariationalLoss(estimators={"z": Mutant()}), pair) > 1e-2


@pytest.mark.float64
@pytest.mark.parametrize("structure", ["chain", "event_dims", "global_site"])
def test_it_is_right_where_the_page_did_not_look(structure: str, page: dict[str, Any]) -> None:
    pair = EVERY[structure]("bernoulli")
    estimators = {name: page["SelfCritical"]() for name in pair.latents}
    assert error(am.VariationalLoss(estimators=estimators), pair) < 1e-10


def test_it_captures(page: dict[str, Any]) -> None:
    def losses(compile: str) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = am.VariationalLoss(estimators={"b": page["SelfCritical"]()})
        svi = am.SVI(page["model"], page["guide"], loss, lr=0.1, compile=compile)
        return [svi.step(torch.linspace(-1, 2, 20)) for _ in range(4)]

    assert losses("graph") == losses("off")
