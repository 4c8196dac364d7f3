from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortized as am
from amortized.checks.consequences import by_cause
from amortized.checks.data import (
    as_batch,
    dtype_findings,
    empty_findings,
    length_findings,
    non_finite_findings,
    observation_findings,
    own_copy,
    rows_of,
    wide_findings,
)
from amortized.checks.report import Finding
from amortized.programs.batches import leaves_of
from amortized.programs.survey import survey_guide, survey_model

NAN, INF = torch.nan, torch.inf


def observed(law: Any, x: Tensor, mask: Any = None) -> list[Finding]:
    def model() -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=True if mask is None else mask):
            pyro.sample("x", law, obs=x)

    guide = survey_guide(lambda: None, (), {})
    return list(observation_findings(survey_model(model, (), {}, guide)))


def test_a_batch_becomes_tensors_and_stays_what_it_is() -> None:
    batch = {"x": np.zeros((2, 3)), "y": [torch.ones(2), "name"], "n": 3}
    placed = as_batch(batch, None)
    assert placed["x"].dtype == torch.float32 and placed["y"] is batch["y"] and placed["n"] == 3
    Pair = namedtuple("Pair", "x y")
    pair = Pair(torch.zeros(2), torch.zeros(2))
    assert as_batch(pair, torch.device("cpu")) is pair
    assert as_batch((torch.zeros(2),), torch.device("meta"))[0].device.type == "meta"


def test_leaves_have_names() -> None:
    leaves = leaves_of({"x": torch.zeros(2), "y": (torch.zeros(()), torch.zeros(3), 1.0)})
    assert list(leaves) == ["batch['x']", "batch['y'][0]", "batch['y'][1]"]
    assert rows_of(leaves) == 2
    assert rows_of(leaves_of(torch.tensor(1.0))) is None


def test_what_shows_in_a_batch_alone() -> None:
    leaves = leaves_of((torch.zeros(4, 0), torch.zeros(3)))
    assert [f.where for f in empty_findings(leaves)] == ["batch[0]"]
    (lengths,) = length_findings(leaves)
    assert "batch[0] has 4 rows, batch[1] has 3 rows" in lengths.found
    assert list(length_findings(leaves_of((torch.zeros(4), torch.tensor(1.0))))) == []


def test_rows_of_what_is_not_finite() -> None:
    x = torch.zeros(9, 2)
    x[[1, 3, 4, 8], 1] = NAN
    x[5, 0] = INF
    found = list(non_finite_findings({"batch": x, "labels": torch.zeros(3, dtype=torch.long)}))
    assert [f.code for f in found] == ["data-nan", "data-inf"]
    assert "4 rows (1, 3, 4 and 1 more)" in found[0].found
    assert "row 5" in found[1].found


def test_types_are_compared_with_the_parameters() -> None:
    leaves = {"x": torch.zeros(2, dtype=torch.long), "y": torch.zeros(2)}
    (finding,) = dtype_findings(leaves, torch.float32)
    assert "int64" in finding.found and "x.float()" in finding.advice
    assert [f.severity for f in wide_findings({"x": torch.zeros(2).double()}, torch.float32)] == [
        "note"
    ]
    assert list(wide_findings(leaves, torch.float32)) == []


@pytest.mark.parametrize(
    ("law", "values", "code", "words"),
    [
        (dist.Normal(0.0, 1.0), [0.0, NAN, 1.0, NAN], "data-nan", "2 rows (1, 3)"),
        (dist.Normal(0.0, 1.0), [0.0, 0.0, -INF, 0.0], "data-inf", "row 2"),
        (dist.Poisson(1.0), [0.0, -1.0, 2.5, 3.0], "data-support", "2 rows (1, 2)"),
        (dist.Bernoulli(0.5), [0.0, 1.0, 0.3, 1.0], "data-support", "0.3"),
        (dist.Gamma(2.0, 1.0), [1.0, 0.0, 1.0, 1.0], "data-support", "row 1"),
        (dist.Beta(2.0, 2.0), [0.1, 0.2, 1.0, 0.3], "data-support", "row 2"),
        (dist.Normal(0.0, 1.0), [1, 2, 3, 4], "data-dtype", "int64"),
    ],
)
def test_observations_that_their_law_cannot_give(
    law: Any, values: list[float], code: str, words: str
) -> None:
    (finding,) = observed(law, torch.tensor(values))
    assert (finding.code, finding.site) == (code, "x")
    assert words in str(finding)


def test_what_is_allowed() -> None:
    assert observed(dist.Exponential(1.0), torch.tensor([0.0, 1.0])) == []
    assert observed(dist.Bernoulli(0.5, validate_args=False), torch.tensor([0.3])) == []
    assert observed(dist.Categorical(torch.ones(3)), torch.tensor([0, 2])) == []


def test_what_is_masked_does_not_count() -> None:
    x, shown = torch.tensor([1.0, NAN, -1.0]), torch.tensor([True, False, False])
    (note,) = observed(dist.Exponential(1.0), x, shown)
    assert (note.severity, note.code) == ("note", "nan-behind-mask")
    assert [f.code for f in observed(dist.Exponential(1.0), x)] == ["data-nan"]
    inner = dist.Exponential(torch.ones(1, 3)).mask(shown).to_event(1)
    assert [f.code for f in observed(inner, x.unsqueeze(0))] == ["nan-behind-mask"]
    assert observed(dist.Exponential(1.0), -torch.ones(3), False) == []


def test_rows_are_those_of_the_data_plate() -> None:
    x = torch.zeros(3, 5)
    x[:, 4] = NAN

    def model() -> None:
        with pyro.plate("rows", 9, subsample=torch.tensor([0, 2, 4, 6, 8])):
            with pyro.plate("draws", 3):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    guide = survey_guide(lambda: None, (), {})
    (finding,) = observation_findings(survey_model(model, (), {}, guide))
    assert "row 8" in finding.found


def test_nan_behind_a_mask_that_spoils_the_run_is_an_error() -> None:
    x = torch.tensor([1.0, NAN])
    findings = observed(dist.Normal(0.0, 1.0), x, torch.tensor([True, False]))
    findings += non_finite_findings({"batch": x})
    (finding,) = by_cause(findings)
    assert (finding.severity, finding.code) == ("error", "nan-behind-mask")
    assert by_cause(findings[:1]) == findings[:1]


def test_an_own_copy_shares_no_memory() -> None:
    batch = {"x": torch.zeros(2), "y": (torch.zeros(2), None, "name")}
    own = own_copy(batch)
    own["x"] += 1.0
    own["y"][0].add_(1.0)
    assert not batch["x"].any() and not batch["y"][0].any() and own["y"][1:] == (None, "name")
    leaf = torch.zeros(2, requires_grad=True)
    assert own_copy([leaf])[0] is leaf


def test_a_batch_whose_observations_are_all_masked_is_noted() -> None:
    def model(x: torch.Tensor, seen: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(seen), obs=x)

    def guide(x: torch.Tensor, seen: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = torch.ones(6)
    (note,) = am.check(model, guide, (x, x < 0)).notes
    assert (note.code, note.site, note.severity) == ("nothing-observed", "x", "note")
    assert "True means" in note.advice
    assert not am.check(model, guide, (x, torch.arange(6) > 4)).notes
