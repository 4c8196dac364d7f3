from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from amortized.checks.supports import (
    outside_elements,
    support_findings,
    support_range,
    support_words,
    unchecked,
)
from amortized.programs.survey import survey_guide, survey_model

SIGMOID = dist.transforms.SigmoidTransform()
AFFINE = dist.transforms.AffineTransform(-1.0, 2.0)
THREE, FOUR = torch.ones(3), torch.ones(4)


def found(q: Any, p: Any) -> list[str]:
    """Severities of the findings of a guide's and a model's law."""
    guide = survey_guide(lambda: pyro.sample("z", q), (), {})
    model = survey_model(lambda: pyro.sample("z", p), (), {}, guide)
    return [f.severity for f in support_findings(guide, model)]


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Normal(0.0, 1.0), dist.StudentT(3.0)),
        (dist.LogNormal(0.0, 1.0), dist.Gamma(1.0, 1.0)),
        (dist.Beta(1.0, 1.0), dist.Uniform(0.0, 1.0)),
        (dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SIGMOID]), dist.Beta(1.0, 1.0)),
        (dist.TransformedDistribution(dist.Beta(1.0, 1.0), [AFFINE]), dist.Uniform(-1.0, 1.0)),
        (dist.Uniform(0.2, 0.7), dist.Uniform(0.0, 1.0)),
        (dist.Delta(torch.tensor(0.5)), dist.Beta(1.0, 1.0)),
        (dist.Bernoulli(0.5), dist.Categorical(torch.ones(2))),
        (dist.Binomial(5, torch.tensor(0.5)), dist.Binomial(5, torch.tensor(0.1))),
        (dist.Dirichlet(THREE), dist.Dirichlet(2 * THREE)),
        (
            dist.OneHotCategoricalStraightThrough(THREE / 3),
            dist.OneHotCategorical(THREE / 3),
        ),
        (
            dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), torch.tensor(0.3)),
            dist.Bernoulli(0.5),
        ),
        (dist.MultivariateNormal(THREE, torch.eye(3)), dist.Normal(THREE, 1.0).to_event(1)),
        (dist.Normal(0.0, 1.0), dist.Exponential(1.0, validate_args=False)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_guide_with_the_model_s_support_is_fine(q: Any, p: Any) -> None:
    assert found(q, p) == []


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Normal(0.0, 1.0), dist.Gamma(1.0, 1.0)),
        (dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0)),
        (dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)),
        (dist.Bernoulli(0.5), dist.Normal(0.0, 1.0)),
        (dist.Categorical(FOUR), dist.Categorical(THREE)),
        (dist.Uniform(-1.0, 1.0), dist.Uniform(0.0, 1.0)),
        (dist.Poisson(9.0), dist.Binomial(3, torch.tensor(0.5))),
        (dist.Delta(torch.tensor(-1.0)), dist.HalfNormal(1.0)),
        (dist.Normal(THREE, 1.0).to_event(1), dist.Dirichlet(THREE)),
        (dist.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.3)), dist.Bernoulli(0.5)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_guide_that_may_leave_the_model_s_support_is_an_error(q: Any, p: Any) -> None:
    assert found(q, p) == ["error"]


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Categorical(THREE), dist.Categorical(FOUR)),
        (dist.Bernoulli(0.5), dist.Poisson(3.0)),
        (dist.Uniform(0.0, 1.0), dist.Normal(0.0, 1.0)),
        (dist.LogNormal(0.0, 1.0), dist.Normal(0.0, 1.0)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_guide_that_misses_a_part_is_a_warning(q: Any, p: Any) -> None:
    assert found(q, p) == ["warning"]


def test_supports_have_words() -> None:
    assert support_words(dist.Normal(0.0, 1.0)) == "all real numbers"
    assert support_words(dist.Gamma(1.0, 1.0)) == "numbers from 0 up"
    assert support_words(dist.Bernoulli(0.5)) == "0 and 1"
    assert support_words(dist.Categorical(THREE)) == "whole numbers from 0 to 2 (3 values)"
    assert support_words(dist.LKJCholesky(2)) == "Cholesky factors of correlation matrices"
    bounded = dist.ImproperUniform(constraints.less_than(2.0), (), ())
    assert support_words(bounded) == "numbers up to 2"


def test_the_elements_of_an_event_are_judged_one_by_one() -> None:
    law = dist.Bernoulli(torch.ones(2, 3) / 2).to_event(1)
    outside = outside_elements(law, torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 2.0]]))
    assert outside is not None
    assert outside.tolist() == [[False, True, False], [False, False, True]]
    assert support_range(dist.Dirichlet(THREE)) is None


def test_consent_is_the_distribution_s_own() -> None:
    law = dist.Bernoulli(torch.tensor([0.5]), validate_args=False).expand([4, 1]).to_event(1)
    assert unchecked(law)
    assert not unchecked(dist.Bernoulli(torch.tensor([0.5])).to_event(1))


@pytest.mark.parametrize(
    ("law", "constraint"),
    [
        (dist.Dirichlet(THREE), "constraints.simplex)"),
        (dist.Gamma(1.0, 1.0), "constraints.positive)"),
        (dist.Beta(1.0, 1.0), "constraints.unit_interval)"),
        (dist.Uniform(-1.0, 2.0), "constraints.interval(-1, 2))"),
        (dist.Pareto(2.0, 1.0), "constraints.greater_than(2))"),
        (dist.LKJCholesky(3, 1.0), "constraints.corr_cholesky)"),
        (dist.Poisson(1.0), "dist.Poisson(...).support)"),
    ],
)
def test_a_point_estimate_is_told_its_constraint(law: Any, constraint: str) -> None:
    shape = law.batch_shape + law.event_shape
    point = dist.Delta(torch.full(shape, -3.5), event_dim=len(law.event_shape))
    guide = survey_guide(lambda: pyro.sample("z", point), (), {})
    model = survey_model(lambda: pyro.sample("z", law), (), {}, guide)
    (finding,) = support_findings(guide, model)
    assert finding.advice.endswith(constraint)
