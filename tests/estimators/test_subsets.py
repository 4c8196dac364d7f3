"""Subsets of a finite support: which values, which weights, extreme parameters, refusals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Estimator, Site, TorchNoise
from amortized.estimators.subsets import SumAndSample, UnorderedSet

SUPPORTS: dict[str, tuple[dist.Distribution, int]] = {
    "bit": (dist.Bernoulli(torch.full((4,), 0.3)), 2),
    "bits of a datum": (dist.Bernoulli(torch.full((4, 3), 0.3)).to_event(1), 8),
    "categories": (dist.Categorical(torch.rand(4, 5)), 5),
    "index vector": (dist.Categorical(torch.rand(4, 2, 5)).to_event(1), 25),
    "one-hot": (dist.OneHotCategorical(torch.rand(4, 6)), 6),
    "count": (dist.Binomial(3, torch.full((4,), 0.2)), 4),
    "expanded": (dist.Categorical(torch.rand(5)).expand([4]), 5),
    "one value": (dist.Categorical(torch.ones(4, 1)), 1),
    "no data": (dist.Categorical(torch.ones(0, 5)), 5),
}
RECIPES: dict[str, tuple[Estimator, int]] = {
    "one and a draw": (SumAndSample(), 2),
    "three and a draw": (SumAndSample(size=3), 4),
    "two": (UnorderedSet(), 2),
    "four": (UnorderedSet(size=4), 4),
}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("name", sorted(SUPPORTS))
def test_values_differ_and_weights_sum_to_one(name: str, recipe: str) -> None:
    (law, support), (estimator, count) = SUPPORTS[name], RECIPES[recipe]
    count, site = min(count, support), Site("z", law)
    draw = estimator.draw(site, TorchNoise())
    assert estimator.copies(site) == draw.copies == count
    shape = law.batch_shape + law.event_shape
    assert draw.value.shape == (shape if count == 1 else (count, *shape))
    rows = draw.value.reshape(count, law.batch_shape.numel(), law.event_shape.numel())
    for datum in range(rows.shape[1]):
        assert len({tuple(row.tolist()) for row in rows[:, datum]}) == count
    weights = estimator.weights(draw)
    assert weights.shape == law.log_prob(draw.value).shape
    torch.testing.assert_close(
        weights.sum(0) if count > 1 else weights, torch.ones(law.batch_shape)
    )
    others = draw.memory["others"]
    torch.testing.assert_close(others.sum(-1), torch.ones_like(others.sum(-1)))


def test_the_most_probable_are_summed() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.4, 0.05, 0.35, 0.2]])
    draw = SumAndSample(size=2).draw(Site("z", dist.Categorical(p)), TorchNoise())
    assert draw.value[:2].T.tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(
        draw.memory["weights"], torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.35, 0.25]])
    )


SURE: dict[str, tuple[object, list[float]]] = {
    "probabilities": (lambda p: dist.Categorical(p), [1.0, 1e-30, 0.0, 0.0, 1e-20]),
    "logits": (lambda x: dist.Categorical(logits=x), [80.0, -80.0, 0.0, 79.0, -300.0]),
    "impossible": (lambda x: dist.Categorical(logits=x), [-math.inf, 0.0, 0.3, -math.inf]),
    "only one": (lambda x: dist.Categorical(logits=x), [-math.inf, 0.3, -math.inf, -math.inf]),
    "one-hot": (lambda x: dist.OneHotCategorical(logits=x), [80.0, -80.0, 0.0, 79.0]),
    "bits": (lambda x: dist.Bernoulli(logits=x).to_event(1), [80.0, -80.0, 0.0]),
    "sure bits": (lambda p: dist.Bernoulli(p).to_event(1), [1e-30, 1.0, 0.0]),
}


def estimates(name: str, estimator: Estimator, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of a few estimates."""
    make, start = SURE[name]
    found = []
    for _ in range(2):
        leaf = torch.tensor(start, dtype=dtype, requires_grad=True)
        law = make(leaf)  # type: ignore[operator]
        size = len(start)

        def model(law=law, size=size) -> None:
            shape = law.event_shape
            z = pyro.sample("z", law)
            flat = z.reshape(*z.shape[: z.dim() - len(shape)], -1).to(dtype).sum(-1)
            pyro.factor("likes", 0.7 * flat)

        def guide(law=law) -> None:
            pyro.sample("z", law)

        loss = am.VariationalLoss(estimators={"z": estimator})
        value = loss.estimate(model, guide, (), {}).loss
        assert value.isfinite()
        found += torch.autograd.grad(value, [leaf])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("name", sorted(SURE))
def test_extreme_parameters_give_finite_gradients(
    name: str, recipe: str, dtype: torch.dtype
) -> None:
    assert all(g.isfinite().all() for g in estimates(name, RECIPES[recipe][0], dtype))


@pytest.mark.float64
@pytest.mark.parametrize("estimator", [SumAndSample(size=2), UnorderedSet(size=2)])
def test_impossible_values_leave_the_exact_gradient(estimator: Estimator) -> None:
    """Two of four are possible, and both are among the copies: nothing is left to chance."""
    gone = torch.tensor([0.0, -math.inf, 0.0, -math.inf])

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(4)))
        pyro.factor("bonus", z.to(torch.float64))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, 0.1, 0.5, 0.2]))
        pyro.sample("z", dist.Categorical(logits=logits + gone))

    found = []
    for recipe in (estimator, am.Enumerate()):
        pyro.clear_param_store()
        value = am.VariationalLoss(estimators={"z": recipe}).loss_and_grads(model, guide)
        found.append((value, pyro.get_param_store()["logits"].grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-14)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-13, atol=1e-14)


@pytest.mark.float64
def test_probabilities_down_to_nothing_keep_their_ratios() -> None:
    """After a sure value, 1 - p rounds to 0; what is left is added up instead."""
    logits = torch.tensor([60.0, 0.0, -1.0, -2.0], dtype=torch.float64)
    site = Site("z", dist.Categorical(logits=logits))
    for seed in range(5):
        pyro.set_rng_seed(seed)
        draw = UnorderedSet(size=2).draw(site, TorchNoise())
        weights = draw.memory["weights"]
        assert weights.sum().item() == pytest.approx(1.0, rel=1e-12)
        # the second value stands for all that is left: its weight is 1 - p of the first
        second = int((draw.value != 0).nonzero()[0])
        rest = torch.softmax(logits, 0)[1:].sum()
        assert weights[second].item() == pytest.approx(rest.item(), rel=1e-6)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_one_datum(recipe: str) -> None:
    size = 1

    def model() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Categorical(torch.ones(size, 5)))

    def guide() -> None:
        logits = pyro.param("logits", torch.linspace(0.0, 1.0, 5))
        with pyro.plate("data", size):
            pyro.sample("z", dist.Categorical(logits=logits.expand(size, 5)))

    loss = am.VariationalLoss(estimators={"z": RECIPES[recipe][0]})
    assert math.isfinite(loss.loss_and_grads(model, guide))
    assert pyro.get_param_store()["logits"].grad.isfinite().all()


REFUSED: dict[str, tuple[dist.Distribution, str]] = {
    "no end": (dist.Poisson(torch.tensor(2.0)), "Poisson has no finite support"),
    "continuous": (dist.Normal(0.0, 1.0), "Normal has no finite support"),
    "too many": (dist.Bernoulli(torch.full((13,), 0.5)).to_event(1), "8192 values (at most 4096)"),
}


@pytest.mark.parametrize("estimator", [SumAndSample(), UnorderedSet()])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_cause_and_remedy(name: str, estimator: Estimator) -> None:
    law, cause = REFUSED[name]

    def program() -> None:
        pyro.sample("count", law)

    with pytest.raises(am.EstimatorError) as error:
        am.VariationalLoss(estimators={"count": estimator}).loss(program, program)
    text = str(error.value)
    assert "site 'count'" in text and cause in text and "am.ScoreFunction(am.LeaveOneOut())" in text


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_set_without_values_is_a_bad_call(size: int) -> None:
    with pytest.raises(am.UsageError, match=r"SumAndSample\(size=.*from 1 to 4096"):
        SumAndSample(size)


@pytest.mark.parametrize("size", [1, 11])
def test_an_unordered_set_has_two_to_ten_values(size: int) -> None:
    with pytest.raises(am.UsageError, match=r"from 2 to 10; one value is am\.ScoreFunction\(\)"):
        UnorderedSet(size)


def test_a_baseline_is_there_or_not() -> None:
    with pytest.raises(am.UsageError, match=r"UnorderedSet\(baseline=0\.5\): expected True or"):
        UnorderedSet(baseline=0.5)  # type: ignore[arg-type]


def test_repr_is_what_one_would_type() -> None:
    assert repr(SumAndSample()) == "SumAndSample(size=1)"
    assert repr(UnorderedSet(3, baseline=False)) == "UnorderedSet(size=3, baseline=False)"


def test_no_state_is_saved() -> None:
    assert UnorderedSet().state_dict() == {} and SumAndSample().state_dict() == {}
