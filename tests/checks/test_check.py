from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.checks.check import inspect_pair
from amortized.checks.report import CODES
from amortized.errors import UsageError
from amortized.programs.records import DataPlate
from tests.checks.wrong import CASES, X, guide, model

DOCS = Path(__file__).parents[2] / "docs" / "check.md"


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_with_its_severity_and_site(name: str) -> None:
    case = CASES[name]()
    report = case.report()
    found = [(f.severity, f.site) for f in report.findings if f.code == case.code]
    assert (case.severity, case.site) in found, str(report)
    assert "check-failed" not in {f.code for f in report.findings}
    json.dumps(report.to_dict())


def test_every_code_has_a_case_and_a_line_in_the_docs() -> None:
    assert {case().code for case in CASES.values()} | {"check-failed", "batch-size"} == set(CODES)
    text = DOCS.read_text(encoding="utf-8")
    assert [code for code in CODES if f"`{code}`" not in text] == []


def test_a_right_pair_has_no_finding() -> None:
    report = am.check(model, guide, X)
    assert report.findings == [] and report.ok
    assert str(report) == "no findings: 2 sites, 1 parameter checked"


def test_several_mistakes_show_in_one_report() -> None:
    def wrong(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def misspelt(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("zz", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    loss = am.VariationalLoss(estimators={"zz": "pathwise", "y": "pathwise"})
    report = am.check(wrong, misspelt, X, loss=loss)
    assert {f.code for f in report.errors} == {
        "missing-in-guide",
        "data-support",
        "estimator-unsupported",
        "estimator-key",
    }


def test_numpy_arrays_are_taken_as_fit_takes_them() -> None:
    assert am.check(model, guide, X.double().numpy()).findings == []


def test_programs_without_arguments() -> None:
    assert am.check(lambda: model(X), lambda: guide(X), ()).findings == []


def test_the_given_loss_stays_as_it_is() -> None:
    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.MovingAverage())})
    am.check(model, guide, X, loss=loss)
    assert not len(loss.estimators.by_site)
    inspect_pair(model, guide, X, loss)
    assert not len(loss.estimators.by_site) and loss.training


def test_inspect_pair_asks_the_store_that_is_current() -> None:
    with pyro.get_param_store().scope() as scope:
        pyro.param("slope", torch.tensor(torch.nan))
        report = inspect_pair(model, guide, X, am.VariationalLoss())
    assert [f.code for f in report.errors] == ["invalid-parameter"]
    assert list(scope["params"]) == ["slope"]


def test_the_size_of_the_data_set_is_taken_into_account() -> None:
    def wrong(x: torch.Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    loss = am.VariationalLoss()
    report = inspect_pair(wrong, AutoNormal(wrong), X, loss, DataPlate("data", 600))
    assert ("warning", "plate-size") in [(f.severity, f.code) for f in report.findings]


@pytest.mark.parametrize("wrong", [AutoNormal, X, am.VariationalLoss()])
def test_what_is_no_program_is_refused(wrong: object) -> None:
    with pytest.raises(am.UsageError, match="guide: found"):
        am.check(model, wrong, X)  # type: ignore[arg-type]


def test_a_plain_pair_is_run_five_times_at_most() -> None:
    runs = {"model": 0, "guide": 0}

    def counted(x: torch.Tensor) -> None:
        runs["model"] += 1
        model(x)

    def counted_guide(x: torch.Tensor) -> None:
        runs["guide"] += 1
        guide(x)

    am.check(counted, counted_guide, X)
    assert runs["model"] <= 5 and runs["guide"] <= 5
    runs |= {"model": 0, "guide": 0}
    am.check(counted, counted_guide, X, loss=am.VariationalLoss(am.ELBO(num_particles=2)))
    assert runs["model"] <= 10 and runs["guide"] <= 10


@pytest.mark.parametrize("name", ["arguments", "negative scale", "lengths", "mixing", "flattening"])
def test_what_a_program_raised_is_kept(name: str) -> None:
    report = CASES[name]().report()
    error = report.errors[0].error
    assert isinstance(error, Exception) and error.__traceback__ is not None
    with pytest.raises(am.AmortizedError) as caught:
        report.raise_errors()
    assert caught.value.__cause__ is error


def test_the_line_of_the_user_is_in_the_traceback_of_fit() -> None:
    def wrong(x: torch.Tensor) -> None:
        model(x)
        raise ArithmeticError("here")

    with pytest.raises(am.ProgramError) as caught:
        am.SVI(wrong, guide).fit(X, max_epochs=1, progress=False)
    cause = caught.value.__cause__
    assert isinstance(cause, ArithmeticError)
    assert "wrong" in {frame.name for frame in traceback.extract_tb(cause.__traceback__)}


@pytest.mark.parametrize("whole", [TensorDataset(X), DataLoader(TensorDataset(X), 2)])
def test_a_whole_loader_is_no_batch(whole: Any) -> None:
    with pytest.raises(UsageError, match="expected one batch of it, such as next"):
        am.check(model, guide, whole)
