from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from amortized.checks.densities import density_findings, leaves_of_programs, log_density
from amortized.programs.leaves import leaves_under
from amortized.programs.survey import Survey, survey_guide, survey_model


def observed(law: object, x: torch.Tensor) -> list[Survey]:
    guide = survey_guide(lambda: None, (), {})
    return [survey_model(lambda: pyro.sample("x", law, obs=x), (), {}, guide)]


def test_what_surveys_depend_on() -> None:
    loc, other = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    surveys = observed(dist.Normal(loc, 1.0), torch.tensor(torch.nan))
    assert set(leaves_under(log_density(surveys))) == {id(loc)}
    surveys += observed(dist.Normal(other, torch.ones(2)), torch.zeros(3))
    assert set(leaves_under(log_density(surveys))) == {id(loc)}, "one that fails is passed over"
    assert log_density([]) is None


def test_statements_that_fail_on_their_value() -> None:
    bits = observed(dist.Bernoulli(logits=torch.zeros(2)), torch.tensor([True, False]))
    (finding,) = density_findings(bits, torch.float32)
    assert (finding.code, finding.site) == ("data-dtype", "x")
    assert "bool" in finding.found and "x.float()" in finding.advice
    shapes = observed(dist.Normal(torch.zeros(2), 1.0), torch.zeros(3))
    (finding,) = density_findings(shapes, torch.float32)
    assert (finding.code, finding.site) == ("program-raises", "x")
    assert list(density_findings(observed(dist.Normal(0.0, 1.0), torch.zeros(3)), None)) == []


def test_leaves_of_programs_are_none_of_the_estimators() -> None:
    weight, table = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z * table, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=weight))

    own = {id(weight), id(table)}
    for estimator in (am.REBAR(), am.RELAX(), am.MuProp(), am.RELAX(relaxed_model=True), am.ARM()):
        for vectorize in (True, False):
            loss = am.VariationalLoss(estimators=estimator, vectorize=vectorize)
            estimate = loss.estimate(model, guide, (), {})
            others = leaves_under(estimate.loss).keys() - own
            trained = {id(parameter) for parameter in loss.parameters()}
            assert others - trained or isinstance(estimator, am.ARM), "a leaf that nobody trains"
            assert leaves_of_programs(estimate.run).keys() == own
