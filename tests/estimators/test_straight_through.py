"""Straight-through values: hard forward, smooth backward; hazards, capture, refusals."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Site, TorchNoise
from amortized.estimators.straight_through import StraightThrough
from tests.estimators.test_relaxed import Given, bits, categories, extreme, pair_of
from tests.laws.structures import EVERY

KINDS = ("plain", "gumbel", "reinmax")


def jacobian(kind: str, family: Any, logits: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
    """A value of one event and its derivative in the logits."""
    leaf = logits.clone().requires_grad_()
    value = StraightThrough(kind).draw(Site("z", family(leaf)), noise).value
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in value]
    return value.detach(), torch.stack(rows)


def softmax_slope(probs: Tensor) -> Tensor:
    return probs.diag() - torch.outer(probs, probs)


@pytest.mark.float64
def test_slopes_of_a_one_hot_vector_are_the_formulas() -> None:
    logits = torch.tensor([0.4, -1.1, 2.0, 0.1])
    probs, u = logits.softmax(0), torch.tensor([0.2, 0.9, 0.3, 0.6])
    _, slope = jacobian("plain", categories, logits, TorchNoise())
    torch.testing.assert_close(slope, softmax_slope(probs))
    value, slope = jacobian("reinmax", categories, logits, TorchNoise())
    middle = softmax_slope((probs + value) / 2)
    torch.testing.assert_close(slope, 2 * middle - softmax_slope(probs) / 2)
    value, slope = jacobian("gumbel", categories, logits, Given(u))
    score = logits - (-u.log()).log()
    assert value.argmax() == score.argmax()
    torch.testing.assert_close(slope, softmax_slope(score.softmax(0)))


@pytest.mark.float64
def test_slopes_of_bits_are_those_of_two_categories() -> None:
    """A bit is a one-hot vector of two, with the logits (phi, 0)."""
    logit = torch.tensor(0.7)
    p = logit.sigmoid()
    for _ in range(5):
        value, slope = jacobian("reinmax", bits, logit[None], TorchNoise())
        middle = (p + value[0]) / 2
        expected = 2 * middle * (1 - middle) - p * (1 - p) / 2
        torch.testing.assert_close(slope, expected.reshape(1, 1))
    _, slope = jacobian("plain", bits, logit[None], TorchNoise())
    torch.testing.assert_close(slope, (p * (1 - p)).reshape(1, 1))
    for u in (0.1, 0.9):
        value, slope = jacobian("gumbel", bits, logit[None], Given(torch.tensor([u])))
        soft = torch.sigmoid(logit + math.log(u / (1 - u)))
        assert value[0] == (soft > 0.5)
        torch.testing.assert_close(slope, (soft * (1 - soft)).reshape(1, 1))


@pytest.mark.float64
@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_draws_of_the_law(kind: str, family: Any) -> None:
    """Exactly 0 and 1, each as often as it should be (5 standard errors)."""
    pyro.set_rng_seed(4)
    logits, count = torch.tensor([0.4, -1.1, 0.8]), 100_000
    law = family(logits.expand(count, 3))
    value = StraightThrough(kind).draw(Site("z", law), TorchNoise()).value
    assert ((value == 0) | (value == 1)).all()
    p = logits.sigmoid() if family is bits else logits.softmax(0)
    assert ((value.mean(0) - p).abs() < 5 * (p * (1 - p) / count).sqrt()).all()


@pytest.mark.float64
@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("kind", KINDS)
def test_own_log_q_is_the_laws_with_a_slope_in_the_value_only(kind: str, family: Any) -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    law, estimator = family(logits), StraightThrough(kind)
    draw = estimator.draw(Site("z", law), TorchNoise())
    log_q = estimator.log_q(draw)
    torch.testing.assert_close(log_q, law.log_prob(draw.value.detach()))
    (slope,) = torch.autograd.grad(log_q.sum(), draw.value, retain_graph=True)
    plain = logits if family is bits else logits.log_softmax(-1)
    torch.testing.assert_close(slope, plain.detach())
    held = torch.autograd.grad(log_q.sum(), logits, retain_graph=True)[0]
    through = torch.autograd.grad(draw.value, logits, grad_outputs=slope)[0]
    torch.testing.assert_close(held, through)


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_category_is_never_drawn_and_has_no_gradient(kind: str) -> None:
    logits = torch.randn(200, 4, requires_grad=True)
    law = categories(logits + torch.tensor([0.0, 0.0, -math.inf, 0.0]))
    estimator = StraightThrough(kind)
    draw = estimator.draw(Site("z", law), TorchNoise())
    assert not draw.value[:, 2].any()
    total = (draw.value * torch.arange(4.0)).sum() + estimator.log_q(draw).sum()
    (grad,) = torch.autograd.grad(total, logits)
    assert grad.isfinite().all() and not grad[:, 2].any() and grad[:, 0].any()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bits", "categories"])
def test_saturated_logits_give_finite_gradients(family: str, kind: str, size: int) -> None:
    model, guide = extreme(family, size)
    loss = am.VariationalLoss(estimators={"z": StraightThrough(kind)})
    for _ in range(5):
        assert math.isfinite(loss.loss_and_grads(model, guide))
    grads = [p.grad for p in pyro.get_param_store()._params.values()]
    assert all(g is None or g.isfinite().all() for g in grads)
    assert any(g is not None and bool(g.any()) for g in grads)


@pytest.mark.parametrize("family", [bits, categories])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind: str, family: Any) -> None:
    pyro.enable_validation(False)  # torch's own check of empty logits fails
    logits = torch.zeros(0, 3, requires_grad=True)
    law, estimator = family(logits), StraightThrough(kind)
    draw = estimator.draw(Site("z", law), TorchNoise())
    assert draw.value.shape == (0, 3) and estimator.log_q(draw).shape == (0,)
    (draw.value.sum() + estimator.log_q(draw).sum()).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [1e-30, 1.0 - 1e-7, 1.0])
def test_probabilities_at_the_edge(probability: float, kind: str) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.factor("cost", -((z - 0.4) ** 2))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(probability))))

    loss = am.VariationalLoss(estimators={"z": StraightThrough(kind)})
    assert math.isfinite(loss.loss_and_grads(model, guide))
    assert pyro.get_param_store()["q"].grad.isfinite().all()


@pytest.mark.float64
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", ["event_dims", "subsampled", "masked", "chain"])
def test_captured_steps_are_bit_for_bit(structure: str, kind: str) -> None:
    def trained(compile: str) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        pair = EVERY[structure]("bernoulli")
        loss = am.VariationalLoss(estimators={n: StraightThrough(kind) for n in pair.latents})
        svi = am.SVI(pair.model, pair.guide, loss, lr=0.1, compile=compile)
        return [svi.step(()) for _ in range(5)], svi._stepper.parameters.snapshot()

    plain, captured = trained("off"), trained("graph")
    assert plain[0] == captured[0]
    assert all(torch.equal(value, captured[1][name]) for name, value in plain[1].items())


@pytest.mark.float64
def test_captured_steps_of_one_hot_vectors() -> None:
    for kind in KINDS:
        found = []
        for compile in ("off", "graph"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            model, guide = pair_of("categories")
            svi = am.SVI(
                model,
                guide,
                am.VariationalLoss(estimators=StraightThrough(kind)),
                lr=0.1,
                compile=compile,
            )
            found.append([svi.step(()) for _ in range(5)])
        assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_says_that_it_is_biased_and_how(kind: str) -> None:
    pair = EVERY["plate"]("bernoulli")
    loss = am.VariationalLoss(estimators={"z": StraightThrough(kind)})
    assert "exact only where what is maximized" in str(loss.describe(pair.model, pair.guide, ()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_refused_with_a_remedy(kind: str) -> None:
    def program() -> None:
        pyro.sample("z", dist.Categorical(torch.ones(3)))

    with pytest.raises(am.EstimatorError, match=r"site 'z'.*Categorical has integer.*OneHot"):
        am.VariationalLoss(estimators={"z": StraightThrough(kind)}).loss(program, program)


def test_options_that_mean_nothing() -> None:
    with pytest.raises(am.UsageError, match="expected one of plain, gumbel, reinmax"):
        StraightThrough("rebar")
    with pytest.raises(am.UsageError, match="only 'gumbel' has a temperature"):
        StraightThrough("reinmax", temperature=0.5)
    with pytest.raises(am.UsageError, match="expected a finite number above 0"):
        StraightThrough("gumbel", temperature=0.0)


def test_it_prints_as_it_is_typed() -> None:
    for typed in ("StraightThrough('plain')", "StraightThrough('gumbel', temperature=0.3)"):
        assert repr(eval(typed)) == typed
