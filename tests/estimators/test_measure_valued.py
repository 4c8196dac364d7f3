"""Measure-valued derivatives: copies, values, hand numbers, extreme parameters, refusals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Site, TorchNoise
from amortized.estimators.measure_valued import MeasureValued

SERVED: dict[str, tuple[dist.Distribution, int]] = {
    "bit": (dist.Bernoulli(torch.full((4,), 0.3)), 2),
    "bits of a datum": (dist.Bernoulli(torch.full((4, 3), 0.3)).to_event(1), 4),
    "two event dims": (dist.Bernoulli(torch.full((4, 3, 2), 0.3)).to_event(2), 7),
    "expanded": (dist.Bernoulli(torch.tensor(0.3)).expand([4]), 2),
    "categories": (dist.Categorical(torch.ones(4, 5)), 5),
    "index vector": (dist.Categorical(torch.ones(4, 2, 5)).to_event(1), 9),
    "one-hot": (dist.OneHotCategorical(torch.ones(4, 3)), 3),
    "one-hot vector": (dist.OneHotCategorical(torch.ones(4, 2, 3)).to_event(1), 5),
    "count": (dist.Binomial(3, torch.full((4,), 0.2)), 2),
    "counts of different size": (dist.Binomial(torch.tensor([0, 1, 5]), torch.tensor(0.2)), 2),
    "normal": (dist.Normal(torch.zeros(4), 1.0), 4),
    "normal vector": (dist.Normal(torch.zeros(4, 3), torch.ones(3)).to_event(1), 10),
    "poisson": (dist.Poisson(torch.ones(4)), 2),
    "gamma": (dist.Gamma(torch.ones(4), 2.0), 2),
    "chi2": (dist.Chi2(torch.ones(4)), 2),
    "exponential": (dist.Exponential(torch.ones(4, 2)).to_event(1), 3),
    "one category": (dist.Categorical(torch.ones(4, 1)), 1),
    "no data": (dist.Normal(torch.zeros(0), 1.0), 4),
    "no data, categories": (dist.Categorical(torch.ones(0, 3)), 3),
    "no elements": (dist.Bernoulli(torch.zeros(4, 0)).to_event(1), 1),
}


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_copies_are_values_of_the_support(name: str, coupling: str) -> None:
    """And the first of them is an ordinary draw."""
    law, count = SERVED[name]
    estimator, site = MeasureValued(coupling), Site("z", law)
    draw = estimator.draw(site, TorchNoise())
    assert estimator.copies(site) == draw.copies == count
    shape = law.batch_shape + law.event_shape
    assert draw.value.shape == (shape if count == 1 else (count, *shape))
    assert not draw.value.requires_grad
    assert law.log_prob(draw.value).isfinite().all()
    assert law.support.check(draw.value).all()


@pytest.mark.parametrize("name", ["bits of a datum", "index vector", "normal vector"])
def test_one_element_moves_at_a_time(name: str) -> None:
    law, _ = SERVED[name]
    value = MeasureValued().draw(Site("z", law), TorchNoise()).value
    moved = (value[1:] != value[0]).reshape(len(value) - 1, 4, -1)
    assert (moved.sum(-1) == 1).all()
    each = moved.any(1).nonzero()[:, 1]
    assert each.tolist() == sorted(each.tolist())


def owed(law: dist.Distribution, draw: Draw, costs: Tensor) -> Tensor:
    placed = Draw(draw.site, draw.value, draw.copies, -1 - len(law.batch_shape), draw.memory)
    found = MeasureValued().surrogate(placed, Cost(costs))
    assert found is not None and (found == 0).all()
    return found


@pytest.mark.float64
def test_a_bit_by_hand() -> None:
    """p (1 - p) (f(1) - f(0))."""
    logit = torch.tensor([0.4, -1.0], requires_grad=True)
    law = dist.Bernoulli(logits=logit)
    draw = MeasureValued().draw(Site("z", law), TorchNoise())
    costs = torch.where(draw.value == 1, torch.tensor([7.0, -2.0]), torch.tensor([3.0, 5.0]))
    (found,) = torch.autograd.grad(owed(law, draw, costs).sum(), logit)
    p = torch.sigmoid(logit.detach())
    torch.testing.assert_close(found, p * (1 - p) * torch.tensor([4.0, -7.0]))


@pytest.mark.float64
def test_a_normal_by_hand() -> None:
    """kappa (f_1 - f_2) for loc, (f_3 - f_0) / s for scale."""
    loc = torch.tensor(0.4, requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    law = dist.Normal(loc, scale)
    draw = MeasureValued().draw(Site("z", law), TorchNoise())
    assert draw.value[1] > 0.4 > draw.value[2]
    assert (draw.value[3] - 0.4).abs() >= (draw.value[0] - 0.4).abs()
    found = torch.autograd.grad(owed(law, draw, torch.tensor([1.0, 5.0, 2.0, 7.0])), [loc, scale])
    assert found[0].item() == pytest.approx(3.0 / (0.5 * math.sqrt(2 * math.pi)))
    assert found[1].item() == pytest.approx(6.0 / 0.5)


@pytest.mark.float64
def test_the_coupled_maxwell_has_its_law() -> None:
    """M^2 is chi-squared with 3 degrees: mean 3, variance 6; its sign is that of the draw."""
    draws = 400_000
    law = dist.Normal(torch.zeros(draws), 1.0)
    value = MeasureValued().draw(Site("z", law), TorchNoise()).value
    square = value[3] ** 2
    assert square.mean().item() == pytest.approx(3.0, abs=5 * math.sqrt(6 / draws))
    assert square.var().item() == pytest.approx(6.0, rel=0.05)
    assert (value[3].sign() == value[0].sign()).all()


def gradients(law, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of a few estimates, in every parameter that the law was made from."""
    found = []
    for _ in range(2):
        made, leaves = law(dtype)

        def model(made=made) -> None:
            with torch.no_grad():
                flat = made.expand(made.batch_shape)
            z = pyro.sample("z", flat)
            cost = z.reshape(*z.shape[: z.dim() - len(made.event_shape)], -1).to(dtype).sum(-1)
            pyro.factor("likes", cost)

        def guide(made=made) -> None:
            pyro.sample("z", made)

        loss = am.VariationalLoss(estimators={"z": MeasureValued()})
        value = loss.estimate(model, guide, (), {}).loss
        assert value.isfinite()
        found += torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return found


def made_from(make, *starts):
    def law(dtype: torch.dtype):
        leaves = [torch.tensor(s, dtype=dtype, requires_grad=True) for s in starts]
        return make(*leaves), leaves

    return law


SURE = [1e-30, 1.0, 0.0, 1e-8]
EXTREME = {
    "probabilities": made_from(lambda p: dist.Bernoulli(p).to_event(1), SURE),
    "logits": made_from(lambda x: dist.Bernoulli(logits=x).to_event(1), [80.0, -80.0, 300.0]),
    "categories": made_from(lambda x: dist.Categorical(logits=x), [80.0, -80.0, 0.0]),
    "impossible": made_from(lambda x: dist.Categorical(logits=x), [-math.inf, 0.3, 0.1]),
    "one-hot": made_from(lambda x: dist.OneHotCategorical(logits=x), [80.0, -80.0, 0.0]),
    "shares": made_from(lambda p: dist.Categorical(p), [1.0, 1e-30, 0.0]),
    "counts": made_from(lambda x: dist.Binomial(4, logits=x).to_event(1), [80.0, -80.0]),
    "narrow": made_from(lambda m, s: dist.Normal(m, s), 0.3, 1e-12),
    "wide": made_from(lambda m, s: dist.Normal(m, s), 1e6, 1e6),
    "rare": made_from(lambda r: dist.Poisson(r), 1e-30),
    "never": made_from(lambda r: dist.Poisson(r), 0.0),
    "frequent": made_from(lambda r: dist.Poisson(r), 1e4),
    "long": made_from(lambda r: dist.Exponential(r), 1e-12),
    "small": made_from(lambda r: dist.Gamma(torch.full_like(r, 1e-3), r), 1e6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(EXTREME))
def test_extreme_parameters_give_finite_gradients(name: str, dtype: torch.dtype) -> None:
    assert all(g.isfinite().all() for g in gradients(EXTREME[name], dtype))


@pytest.mark.float64
def test_an_impossible_category_adds_nothing() -> None:
    """Its cost is infinite and its share is 0."""
    impossible = torch.tensor([0.0, 0.0, -math.inf])

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3) + impossible))
        pyro.factor("bonus", z.to(torch.float64))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, 0.1, 0.5]))
        pyro.sample("z", dist.Categorical(logits=logits + impossible))

    am.VariationalLoss(estimators={"z": MeasureValued()}).loss_and_grads(model, guide)
    q = torch.softmax(torch.tensor([0.3, 0.1]), 0)
    cost = torch.tensor([0.0, 1.0]) - math.log(2) - q.log()
    expected = -q * (cost - (q * cost).sum())
    gradient = pyro.get_param_store()["logits"].grad
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(1)]))


def test_one_datum() -> None:
    size = 1

    def model() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)).expand(size), 0.5))

    value = am.VariationalLoss(estimators={"z": MeasureValued()}).loss_and_grads(model, guide)
    assert math.isfinite(value) and pyro.get_param_store()["m"].grad.isfinite()


REFUSED: dict[str, tuple[dist.Distribution, str]] = {
    "another law": (dist.LogNormal(torch.tensor(0.0), 1.0), "weak derivative of LogNormal"),
    "a vector": (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), "MultivariateNormal"),
    "a learned shape": (
        dist.Gamma(torch.tensor(2.0, requires_grad=True), 1.0),
        "the concentration of this Gamma has a gradient",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_cause_and_remedy(name: str) -> None:
    law, cause = REFUSED[name]

    def program() -> None:
        pyro.sample("width", law)

    with pytest.raises(am.EstimatorError) as error:
        am.VariationalLoss(estimators={"width": MeasureValued()}).loss(program, program)
    text = str(error.value)
    assert "site 'width'" in text and cause in text
    assert "am.ScoreFunction(am.LeaveOneOut())" in text and "am.Pathwise()" in text


def test_a_shape_that_turns_out_to_be_learned_is_refused_at_the_draw() -> None:
    """A network's output has no gradient at a warm-up."""
    weight = torch.tensor(0.3, requires_grad=True)

    def program() -> None:
        pyro.sample("width", dist.Gamma(weight.exp(), 1.0))

    loss = am.VariationalLoss(estimators={"width": MeasureValued()})
    loss.warm_up(program, program, ())
    with pytest.raises(am.EstimatorError, match=r"site 'width': the concentration.*detach"):
        loss.loss_and_grads(program, program)


@pytest.mark.parametrize("bad", ["paired", {"scale": "paired"}, {"logits": "coupled"}, 3])
def test_another_coupling_is_a_bad_call(bad: object) -> None:
    with pytest.raises(am.UsageError, match=r"MeasureValued\(coupling=.*'independent'"):
        MeasureValued(bad)  # type: ignore[arg-type]


def test_repr_is_what_one_would_type() -> None:
    assert repr(MeasureValued()) == "MeasureValued()"
    assert repr(MeasureValued("independent")) == "MeasureValued('independent')"


def test_terms_outside_the_plate_are_refused() -> None:
    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)))
        pyro.factor("all", z.sum(-1, keepdim=True))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.3)))

    with pytest.raises(am.ProgramError, match=r"site 'z'.*plate 'data'.*MeasureValued"):
        am.VariationalLoss(estimators={"z": MeasureValued()}).loss(model, guide)
