from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from amortized.checks.estimators import (
    asked_findings,
    idle_findings,
    key_findings,
    refusal_findings,
)
from amortized.estimators.base import Site
from amortized.programs.survey import Survey, survey_guide, survey_model


def surveyed(infer: Any = None, model_infer: Any = None) -> tuple[Survey, Survey]:
    def guide() -> None:
        pyro.sample("a", dist.Bernoulli(0.5), infer=infer)
        pyro.sample("b", dist.Poisson(1.0))
        pyro.sample("c", dist.Normal(0.0, 1.0))

    def model() -> None:
        pyro.sample("a", dist.Bernoulli(0.5), infer=model_infer)
        pyro.sample("b", dist.Poisson(1.0))
        pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    theirs = survey_guide(guide, (), {})
    return theirs, survey_model(model, (), {}, theirs)


def test_every_site_that_is_refused() -> None:
    guide, _ = surveyed()
    found = list(refusal_findings(am.VariationalLoss(estimators="enumerate"), guide))
    assert [f.site for f in found] == ["b", "c"]
    assert "Poisson" in found[0].found and "am.ScoreFunction" in found[0].advice
    assert list(refusal_findings(am.VariationalLoss(), guide)) == []


def test_draws_for_a_leave_one_out_baseline() -> None:
    guide, _ = surveyed()
    mapping = {"a": am.ScoreFunction(am.LeaveOneOut(), num_samples=1)}
    objective = am.ELBO(num_particles=2)
    alone = am.VariationalLoss(estimators=mapping)
    together = am.VariationalLoss(objective, mapping)
    one_by_one = am.VariationalLoss(objective, mapping, vectorize=False)
    assert len(list(refusal_findings(alone, guide))) == 1
    assert list(refusal_findings(together, guide)) == []
    assert len(list(refusal_findings(one_by_one, guide))) == 1


def test_an_unknown_wish_at_a_site() -> None:
    guide, _ = surveyed({"estimator": "reinforce"})
    (finding,) = refusal_findings(am.VariationalLoss(), guide)
    assert finding.site == "a" and "'reinforce'" in finding.found


def test_keys_of_the_mapping() -> None:
    _, model = surveyed()
    loss = am.VariationalLoss(estimators={"cc": "pathwise", "x": "pathwise", "a*": "enumerate"})
    (finding,) = key_findings(loss, {"a", "b", "c"}, model)
    assert finding.severity == "error" and "'cc'" in finding.where
    assert [f.severity for f in idle_findings(loss, model, optional=False)] == ["warning"]
    assert [f.severity for f in idle_findings(loss, model, optional=True)] == ["note"]
    assert list(key_findings(am.VariationalLoss(estimators="pathwise"), set(), model)) == []


def asked(infer: Any = None, model_infer: Any = None, **mapping: Any) -> list[tuple[str, str]]:
    pair = surveyed(infer, model_infer)
    loss = am.VariationalLoss(estimators=mapping or None)
    for statement in pair[0].latents.values():
        site = Site(statement.name, statement.fn)
        loss.estimators.choose(site, statement.infer)
    return [(f.code, f.severity) for f in asked_findings(loss, pair)]


def test_enumeration_that_does_not_happen() -> None:
    marked = {"enumerate": "parallel"}
    wanting = [("enumeration-not-happening", "warning")]
    assert asked(marked) == []
    assert asked(marked, a="score_function") == wanting
    assert asked(None, marked) == wanting
    assert asked(None, marked, a="enumerate") == []


def test_misspelt_wishes() -> None:
    assert asked({"enumerated": "parallel"}) == [("enumeration-not-happening", "warning")]
    assert asked({"estimater": "enumerate"}) == [("estimator-key", "warning")]
    assert asked({"_private": 1, "colour": "red", "baseline_input": None}) == []
