"""Elements of events, and densities at relaxed values."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import amortized as am
from amortized.estimators import elements

pytestmark = pytest.mark.float64


def laws() -> dict[str, dist.Distribution]:
    """In the default dtype of the test."""
    return {
        "bits": dist.Bernoulli(logits=torch.tensor([0.3, -1.2])),
        "event of bits": dist.Bernoulli(logits=torch.tensor([[0.3, -1.2], [2.0, 0.0]])).to_event(1),
        "bits by probability": dist.Bernoulli(probs=torch.tensor([0.2, 0.9])).to_event(1),
        "one-hot": dist.OneHotCategorical(logits=torch.tensor([[0.3, -1.2, 4.0], [0.0, 1.0, 2.0]])),
        "event of one-hots": dist.OneHotCategorical(logits=torch.randn(4, 2, 3)).to_event(1),
        "a masked part": dist.Bernoulli(logits=torch.tensor([0.3, -1.2]))
        .mask(torch.tensor([True, False]))
        .to_event(1),
    }


@pytest.mark.parametrize("name", sorted(laws()))
def test_the_linear_density_is_the_law_s_own_at_hard_values(name: str) -> None:
    law = laws()[name]
    for _ in range(5):
        value = law.sample()
        found = elements.linear_log_prob(law, value)
        assert torch.allclose(found, law.log_prob(value), rtol=1e-14, atol=1e-14)


def test_between_hard_values_it_is_linear() -> None:
    law = laws()["event of one-hots"]
    one, other = law.sample(), law.sample()
    ends = [elements.linear_log_prob(law, value) for value in (one, other)]
    middle = elements.linear_log_prob(law, 0.3 * one + 0.7 * other)
    assert torch.allclose(middle, 0.3 * ends[0] + 0.7 * ends[1], rtol=1e-13)


def test_an_impossible_category_that_is_not_taken_costs_nothing() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0], requires_grad=True)
    law = dist.OneHotCategorical(logits=logits, validate_args=False)
    value = torch.tensor([0.25, 0.0, 0.75])
    found = elements.linear_log_prob(law, value)
    assert found.item() == pytest.approx(-torch.tensor(2.0).log().item())


def test_it_broadcasts_like_a_log_probability() -> None:
    law = laws()["event of bits"]
    assert elements.linear_log_prob(law, torch.rand(5, 1, 2, 2)).shape == (5, 1, 2)


def test_other_laws_have_none() -> None:
    with pytest.raises(am.EstimatorError, match=r"Normal.*OneHotCategorical in model and guide"):
        elements.linear_log_prob(dist.Normal(0.0, 1.0).expand([2]).to_event(1), torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "dims", "shape"),
    [("bits", 0, (2,)), ("event of bits", 1, (2, 2)), ("event of one-hots", 1, (4, 2, 3))],
)
def test_logits_and_dims(name: str, dims: int, shape: tuple[int, ...]) -> None:
    law = laws()[name]
    logits = elements.logits_of(law)
    assert elements.element_dims(law) == dims and logits.shape == shape
    if elements.is_categorical(law):
        assert torch.allclose(logits.exp().sum(-1), torch.ones(shape[:-1]))
    spread = elements.to_elements(torch.zeros(7, *law.batch_shape), law)
    assert spread.shape == (7, *law.batch_shape, *(1,) * dims)
    per_element = logits[..., 0] if elements.is_categorical(law) else logits
    assert elements.sum_elements(per_element, law).shape == law.batch_shape
