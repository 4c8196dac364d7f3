"""Pathwise: the derivative of the draw itself, and who has none."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators.base import Site, TorchNoise


def test_the_draw_of_a_normal_moves_with_loc_and_scale() -> None:
    loc, scale = torch.tensor(0.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    draw = am.Pathwise().draw(Site("z", dist.Normal(loc, scale)), TorchNoise())
    slopes = torch.autograd.grad(draw.value, [loc, scale])
    assert slopes[0].item() == 1.0
    assert slopes[1].item() == pytest.approx(((draw.value - loc) / scale).item())


def test_the_draw_of_a_gamma_moves_implicitly() -> None:
    """A Gamma is a Gamma(shape, 1) over its rate, so dz/drate = -z / rate exactly."""
    shape, rate = torch.tensor(1.7, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    draw = am.Pathwise().draw(Site("z", dist.Gamma(shape, rate)), TorchNoise())
    by_shape, by_rate = torch.autograd.grad(draw.value, [shape, rate])
    assert by_rate.item() == pytest.approx((-draw.value / rate).item(), rel=1e-5)
    assert by_shape.item() > 0


@pytest.mark.parametrize(
    "law",
    [
        dist.Bernoulli(0.5),
        dist.Poisson(1.0),
        dist.VonMises(0.0, 1.0),
        dist.Bernoulli(0.5).expand([3]).to_event(1),
    ],
)
def test_refused_where_there_is_no_such_draw(law: dist.Distribution) -> None:
    reason = am.Pathwise().refusal(Site("z", law))
    assert reason is not None and "has_rsample is False" in reason and "ScoreFunction" in reason


@pytest.mark.parametrize("law", [dist.LogNormal(0.0, 1.0), dist.Dirichlet(torch.ones(3))])
def test_served_where_there_is(law: dist.Distribution) -> None:
    assert am.Pathwise().refusal(Site("z", law)) is None


def test_the_error_names_site_cause_and_remedy() -> None:
    def program() -> None:
        pyro.sample("cluster", dist.Bernoulli(0.5))

    loss = am.VariationalLoss(estimators={"clus*": "pathwise"})
    with pytest.raises(am.EstimatorError) as error:
        loss.loss(program, program)
    text = str(error.value)
    assert "site 'cluster'" in text and "mapping 'clus*'" in text and "Pathwise()" in text
    assert "Bernoulli has no reparameterized draw" in text and "am.Enumerate()" in text


ROUNDING = [
    dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=torch.tensor([0.3, 0.6])),
    dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), probs=torch.ones(2, 3)),
    dist.OneHotCategoricalStraightThrough(probs=torch.ones(2, 3)),
]


@pytest.mark.parametrize("law", ROUNDING, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("estimator", [None, "pathwise"])
def test_distributions_that_round_are_called_biased(law, estimator: str | None) -> None:
    """By default as well: rsample is there, and its gradient is that of something else."""

    def program() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", law)

    loss = am.VariationalLoss(estimators=estimator)
    text = str(loss.describe(program, program, ()))
    assert f"site 'z' is biased: {type(law).__name__} rounds" in text
    assert am.Pathwise().bias_of(Site("z", dist.Normal(0.0, 1.0))) == ""
    refusal = am.RELAX().refusal(Site("z", law))
    assert refusal is not None and "rounds what it draws" in refusal


@pytest.mark.parametrize("estimator", ["doubly_reparameterized", "score_function"])
def test_a_flow_without_an_inverse_is_a_sentence(estimator: str) -> None:
    flow = dist.transforms.Planar(2)

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [pyro.module("flow", flow)]))

    with pytest.raises(am.EstimatorError, match=r"site 'z'.*\(Planar\) cannot be inv.*am.Pathwise"):
        am.VariationalLoss(estimators=estimator).loss_and_grads(model, guide)
    am.VariationalLoss(estimators="pathwise").loss_and_grads(model, guide)
