from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import dropout

from amortized.checks.structure import (
    branch_findings,
    structure_findings,
    writes,
    written_findings,
)
from amortized.programs.survey import survey_guide, survey_model

Guide = Callable[[], Any]


def guide() -> torch.Tensor:
    return pyro.sample("z", dist.Normal(0.0, 1.0))


class Pair:
    """Surveys of a pair, counted."""

    def __init__(self, model: Callable[[], Any], guide: Guide = guide) -> None:
        self.model, self.guide, self.runs = model, guide, 0

    def __call__(self, values: Any = None) -> Any:
        self.runs += 1
        drawn = survey_guide(self.guide, (), {}, values)
        return drawn, survey_model(self.model, (), {}, drawn, values)

    def findings(self) -> list[Any]:
        torch.manual_seed(3)
        return list(structure_findings(self(), self, 3))


def observe(value: float = 0.0, name: str = "x") -> None:
    pyro.sample(name, dist.Normal(0.0, 1.0), obs=torch.tensor(value))


def branching() -> None:
    if guide() > 0:
        observe()


def randomly(draw: Callable[[], float]) -> Callable[[], None]:
    def model() -> None:
        guide()
        if draw() > 0.5:
            observe()

    return model


def test_two_runs_are_enough_for_a_pair_without_other_randomness() -> None:
    pair = Pair(branching)
    assert pair.findings() == [] and pair.runs == 2


@pytest.mark.parametrize(
    ("model", "who"),
    [
        (randomly(random.random), "Python's or numpy's"),
        (randomly(np.random.rand), "Python's or numpy's"),
        (randomly(lambda: float(torch.rand(()))), "torch's random numbers"),
    ],
)
def test_sites_that_other_randomness_decides(model: Callable[[], Any], who: str) -> None:
    (finding,) = Pair(model).findings()
    assert (finding.severity, finding.code, finding.site) == ("warning", "structure-varies", "x")
    assert who in finding.found and "comes and goes" in finding.found


def test_hidden_state_that_moves_a_density() -> None:
    calls = count()

    def model() -> None:
        pyro.sample("x", dist.Normal(float(next(calls)), 1.0), obs=torch.tensor(0.0))

    (finding,) = Pair(model).findings()
    assert "value or density changes" in finding.found and "something hidden" in finding.found


@pytest.mark.parametrize(
    "noise",
    [
        lambda: float(np.random.randn()),
        lambda: random.gauss(0.0, 1.0),
        lambda: float(dropout(torch.ones(()), 0.5)),
    ],
)
def test_noise_on_values_is_a_matter_of_taste(noise: Callable[[], float]) -> None:
    assert Pair(lambda: (guide(), observe(noise()))).findings() == []


def test_random_minibatches_are_part_of_what_is_fixed() -> None:
    def model() -> None:
        for row in pyro.plate("rows", 100, subsample_size=2):
            observe(float(row), f"x_{row}")

    pair = Pair(lambda: (guide(), model()))
    assert pair.findings() == [] and pair.runs == 2
    pair = Pair(lambda: None, lambda: (guide(), model()))
    assert pair.findings() == []


def test_what_the_first_run_sets_up_is_no_change() -> None:
    made: list[float] = []

    def model() -> None:
        if not made:
            made.append(1.0)
            return
        observe(made[0])

    assert Pair(model).findings() == []


def test_branches_on_latents_and_on_hidden_state() -> None:
    pair = Pair(branching)
    positive = lambda: pair({"z": torch.tensor(1.0)})  # noqa: E731
    negative = pair({"z": torch.tensor(-1.0)})
    assert list(branch_findings(["z", "x"], negative, positive)) == []
    assert list(branch_findings(["z"], negative, positive)) == []
    (finding,) = branch_findings(["z", "x"], negative, lambda: negative)
    assert (finding.code, finding.site) == ("structure-varies", "x")


def test_what_a_program_writes_into_is_named() -> None:
    x, z, found = torch.ones(3), torch.ones(()), {}
    with writes("guide", {"batch": x}, {"z": z}, found):
        x.add_(0.0).detach().mul_(2.0)
    with writes("model", {"batch": x}, {"z": z}, found):
        z.mul_(2.0)
        _ = x * 2.0
    assert found == {("guide", "batch"): False, ("model", "z"): True}
    data, drawn = written_findings(found)
    assert (data.site, data.where, drawn.site) == (None, "the guide", "z")
    assert "its argument batch" in data.found and "guide drew" in drawn.found
