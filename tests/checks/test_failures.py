from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized as am
from amortized.checks.failures import Facts, data_causes, failure_findings
from amortized.checks.report import Finding
from amortized.programs.batches import leaves_of
from amortized.programs.survey import survey_guide

X = torch.zeros(6, 4)


def found(program: Callable[..., Any], batch: Any = X) -> list[Finding]:
    args = batch if isinstance(batch, tuple) else (batch,)

    def again(in_model: bool) -> Any:
        with pyro.validation_enabled(False):
            return survey_guide(program, args, {})

    facts = Facts(leaves_of(batch), torch.float32, again)
    return list(failure_findings(survey_guide(program, args, {}), facts))


def in_plate(size: int, law: Any) -> Callable[[Any], None]:
    def program(x: Any) -> None:
        with pyro.plate("data", size):
            pyro.sample("z", law)

    return program


def test_a_program_that_runs() -> None:
    assert found(in_plate(6, dist.Normal(0.0, 1.0))) == []


@pytest.mark.parametrize(
    ("law", "events"),
    [
        (dist.Normal(torch.zeros(6, 4), 1.0), 1),
        (dist.Normal(torch.zeros(6, 2, 4), 1.0), 2),
        (dist.Normal(torch.zeros(6, 2, 4), 1.0).to_event(1), 2),
        (dist.Normal(torch.zeros(4), 1.0), 1),
    ],
)
def test_dims_right_of_a_plate_belong_to_the_event(law: Any, events: int) -> None:
    (finding,) = found(in_plate(6, law))
    assert (finding.code, finding.site) == ("undeclared-batch-dim", "z")
    assert f".to_event({events})" in finding.advice


def test_a_plate_of_another_size_than_the_batch() -> None:
    (finding,) = found(in_plate(9, dist.Normal(torch.zeros(6), 1.0)))
    assert (finding.code, finding.site) == ("plate-size", "z")


@pytest.mark.parametrize(
    ("law", "advice"),
    [
        (lambda: dist.Normal(0.0, -1.0), "softplus"),
        (lambda: dist.Normal(torch.tensor(torch.nan), 1.0), "division by 0"),
        (lambda: dist.Bernoulli(torch.tensor(1.5)), "logits="),
        (lambda: dist.MultivariateNormal(torch.zeros(2), -torch.eye(2)), "scale_tril"),
        (lambda: dist.LogNormal(0.0, -1.0), "softplus"),
    ],
)
def test_refused_parameters_name_their_site(law: Callable[[], Any], advice: str) -> None:
    def program(x: Any) -> None:
        for name in ("a", "b"):
            fn = law() if name == "b" else dist.Normal(0.0, 1.0)
            pyro.sample(name, fn)

    (finding,) = found(program)
    assert finding.code == "invalid-parameter"
    assert advice in finding.advice
    if "Multivariate" not in finding.found:  # there is no statement without a Cholesky factor
        assert finding.site == "b"


def test_the_data_are_blamed_where_they_explain_it() -> None:
    net = nn.Linear(4, 1)

    def program(x: Any) -> None:
        pyro.sample("z", dist.Normal(net(x), 1.0))

    assert [f.code for f in found(program, X.double())] == ["data-dtype"]
    assert [f.code for f in found(program, X.long())] == ["data-dtype"]
    assert [f.code for f in found(program, X * torch.nan)] == ["data-nan"]
    both = found(lambda x, y: x + y, (X, X[:5]))
    assert [f.code for f in both] == ["data-lengths"]


@pytest.mark.parametrize(
    ("program", "words", "advice"),
    [
        (lambda x: nn.Linear(3, 2)(x), "Linear(in_features=3", "order of their layers"),
        (lambda: None, "positional argument", "same arguments"),
        (lambda x: pyro.sample("z", dist.Normal(0.0, 1.0), x), "Size", "obs=x"),
        (lambda x: pyro.param("p", 0.0), "float", "torch.tensor"),
        (lambda x: in_plate(0, dist.Normal(0.0, 1.0))(x), "zero", "one element"),
        (lambda x: in_plate.nothing, "nothing", "the guide runs first"),
        (lambda x: {}["key"], "KeyError", "whole traceback"),
    ],
)
def test_other_failures_keep_their_words(program: Any, words: str, advice: str) -> None:
    (finding,) = found(program)
    assert finding.code == "program-raises"
    assert words in finding.found and advice in finding.advice
    assert "test_failures.py line" in finding.where or finding.where.startswith("the guide")


def test_this_package_s_own_errors_stay_what_they_are() -> None:
    (finding,) = found(lambda x: am.Fold(nn.Linear(4, 1), 3)(x))
    assert "Fold" in finding.where


def test_devices() -> None:
    def program(x: Any) -> None:
        raise RuntimeError("Expected all tensors to be on the same device")

    assert [f.code for f in found(program)] == ["devices-differ"]
    assert list(data_causes(RuntimeError("other"), leaves_of(X), None)) == []


@pytest.mark.parametrize("start", [0.0, -1.0])
def test_a_parameter_that_starts_outside_of_its_constraint_is_named(start: float) -> None:
    def program(x: Any) -> None:
        scale = pyro.param("width", torch.tensor(start), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(0.0, scale))

    pyro.clear_param_store()
    (finding,) = found(program)
    assert (finding.code, finding.site) == ("invalid-parameter", "z")
    assert "'width'" in finding.advice and "a start inside" in finding.advice
