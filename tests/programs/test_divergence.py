"""Closed KLs against torch's, against quadrature, and where there must be none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

import amortized as am
from amortized.programs.divergence import closed_kl

pytestmark = pytest.mark.float64


def normal(loc: float, scale: float, *shape: int) -> dist.Normal:
    ones = torch.ones(shape, dtype=torch.float64)
    return dist.Normal(loc * ones, scale * ones)


Q, P = normal(0.7, 0.5, 4, 3), normal(-0.2, 1.3, 4, 3)
ELEMENT = math.log(1.3 / 0.5) + (0.5**2 + 0.9**2) / (2 * 1.3**2) - 0.5
COVARIANCE = 1.3**2 * torch.eye(3, dtype=torch.float64)

CLOSED: dict[str, tuple[Any, Any, list[int], float]] = {
    "plain": (Q, P, [4, 3], ELEMENT),
    "one event dim": (Q.to_event(1), P.to_event(1), [4], 3 * ELEMENT),
    "two event dims": (Q.to_event(2), P.to_event(2), [], 12 * ELEMENT),
    "expanded": (
        dist.Normal(0.7, 0.5).expand([4, 3]).to_event(1),
        dist.Normal(-0.2, 1.3).expand([4, 3]).to_event(1),
        [4],
        3 * ELEMENT,
    ),
    "prior broadcast": (Q.to_event(1), normal(-0.2, 1.3, 3).to_event(1), [4], 3 * ELEMENT),
    "against a multivariate": (
        Q.to_event(1),
        dist.MultivariateNormal(torch.full((4, 3), -0.2, dtype=torch.float64), COVARIANCE),
        [4],
        3 * ELEMENT,
    ),
    "multivariates in an event": (
        dist.MultivariateNormal(torch.zeros(4, 3), torch.eye(3)).to_event(1),
        dist.MultivariateNormal(torch.ones(4, 3), torch.eye(3)).to_event(1),
        [],
        4 * 1.5,
    ),
    "bits": (
        dist.Bernoulli(torch.tensor([0.2, 0.2])).to_event(1),
        dist.Bernoulli(torch.tensor([0.5, 0.5])).to_event(1),
        [],
        2 * (0.2 * math.log(0.4) + 0.8 * math.log(1.6)),
    ),
    "bits under a common prior": (
        dist.Bernoulli(torch.full((4, 3), 0.2)).to_event(1),
        dist.Bernoulli(torch.full((3,), 0.5)).to_event(1),
        [4],
        3 * (0.2 * math.log(0.4) + 0.8 * math.log(1.6)),
    ),
    "log-normals": (dist.LogNormal(0.7, 0.5), dist.LogNormal(-0.2, 1.3), [], ELEMENT),
}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_closed_forms(name: str) -> None:
    q, p, shape, each = CLOSED[name]
    found = closed_kl(q, p)
    assert found is not None and list(found.shape) == shape
    torch.testing.assert_close(found, torch.full(shape, each).to(found), rtol=1e-5, atol=1e-6)


FAMILIES = [
    (dist.Gamma(2.0, 3.0), dist.Gamma(1.5, 0.5)),
    (dist.Beta(2.0, 3.0), dist.Beta(1.5, 0.5)),
    (dist.Dirichlet(torch.tensor([1.0, 2.0])), dist.Dirichlet(torch.tensor([2.0, 0.5]))),
    (dist.Categorical(torch.tensor([0.2, 0.8])), dist.Categorical(torch.tensor([0.5, 0.5]))),
    (dist.Poisson(2.0), dist.Poisson(3.0)),
    (dist.Normal(0.0, 1.0), dist.Laplace(0.5, 2.0)),
]


@pytest.mark.parametrize(("q", "p"), FAMILIES, ids=lambda d: type(d).__name__)
def test_other_families_are_torch_s(q: Any, p: Any) -> None:
    torch.testing.assert_close(closed_kl(q, p), kl_divergence(q, p))


MASK, OTHER = torch.tensor([True, False, True]), torch.tensor([True, True, False])
UNKNOWN: dict[str, tuple[Any, Any]] = {
    "no formula": (dist.StudentT(3.0), dist.Normal(0.0, 1.0)),
    "a point": (dist.Delta(torch.zeros(3)), normal(0, 1, 3)),
    # log q of these is not what the registered formulas take it for
    "points with a density": (
        dist.Delta(torch.zeros(3), log_density=torch.ones(3)).to_event(1),
        normal(0, 1, 3).to_event(1),
    ),
    "masks inside an event": (
        normal(1, 0.5, 3).mask(MASK).to_event(1),
        normal(0, 1, 3).mask(OTHER).to_event(1),
    ),
}


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_none_where_none_is_known(name: str) -> None:
    assert closed_kl(*UNKNOWN[name]) is None


def bound(
    q: Callable[[Tensor], Any],
    p: Callable[[], Any],
    guide_context: Callable[[], Any],
    model_context: Callable[[], Any],
) -> tuple[Tensor, Tensor, str]:
    """The closed bound, its gradient in q's location, and the note."""

    def model() -> None:
        with pyro.plate("data", 3), model_context():
            pyro.sample("z", p())

    def guide() -> None:
        loc = pyro.param("loc", torch.full((3,), 0.7))
        with pyro.plate("data", 3), guide_context():
            pyro.sample("z", q(loc))

    loss = am.VariationalLoss(am.ELBO(kl="analytic"))
    estimate = loss.estimate(model, guide, (), {})
    # an entropy alone does not depend on the location
    loc = pyro.get_param_store()["loc"]
    slope = torch.zeros_like(loc)
    if estimate.loss.requires_grad:
        (slope,) = torch.autograd.grad(estimate.loss, loc)
    note = loss.describe(model, guide, ()).rows[0].kl
    return -estimate.loss.detach(), slope, note


def quadrature(
    q: Callable[[Tensor], Any],
    p: Callable[[], Any],
    guide_scale: Tensor,
    model_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """E_q[s_p log p - s_q log q] and minus its gradient in loc, by Gauss-Hermite nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    loc = torch.full((3,), 0.7, requires_grad=True)
    z = loc + 0.5 * torch.as_tensor(nodes).unsqueeze(-1)
    gap = model_scale * p().log_prob(z) - guide_scale * q(loc).log_prob(z)
    weighted = torch.as_tensor(weights / weights.sum()).unsqueeze(-1) * gap
    value = weighted.sum()
    (slope,) = torch.autograd.grad(-value, loc)
    return value.detach(), slope


def plain_q(loc: Tensor) -> Any:
    return dist.Normal(loc, torch.full((3,), 0.5))


def plain_p() -> Any:
    return dist.Normal(torch.full((3,), -0.2), torch.full((3,), 1.3))


def scaled(factor: float) -> Callable[[], Any]:
    return lambda: poutine.scale(scale=factor)


def masked(mask: Any) -> Callable[[], Any]:
    return lambda: poutine.mask(mask=mask)


def as_weights(mask: Tensor) -> Tensor:
    return mask.to(torch.float64)


ONE = torch.ones(3, dtype=torch.float64)
SCALES: dict[str, tuple[Any, Any, Tensor, Tensor]] = {
    "same": (scaled(0.3), scaled(0.3), 0.3 * ONE, 0.3 * ONE),
    "different": (scaled(0.3), scaled(2.0), 0.3 * ONE, 2.0 * ONE),
    "prior only": (scaled(1.0), scaled(2.0), ONE, 2.0 * ONE),
    "same masks": (masked(MASK), masked(MASK), as_weights(MASK), as_weights(MASK)),
    "equal masks": (masked(MASK), masked(MASK.clone()), as_weights(MASK), as_weights(MASK)),
    "different masks": (masked(MASK), masked(OTHER), as_weights(MASK), as_weights(OTHER)),
    "prior masked away": (masked(True), masked(False), ONE, 0 * ONE),
}


@pytest.mark.parametrize("name", sorted(SCALES))
def test_scales_and_masks_by_quadrature(name: str) -> None:
    """E_q[s_p log p - s_q log q] = -s_p KL + (s_q - s_p) H(q)."""
    guide_context, model_context, guide_scale, model_scale = SCALES[name]
    value, slope, note = bound(plain_q, plain_p, guide_context, model_context)
    expected, expected_slope = quadrature(plain_q, plain_p, guide_scale, model_scale)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)
    assert note == "closed form"


def test_masks_of_the_laws_themselves_by_quadrature() -> None:
    def q(loc: Tensor) -> Any:
        return plain_q(loc).mask(MASK)

    def p() -> Any:
        return plain_p().mask(OTHER)

    value, slope, note = bound(q, p, scaled(1.0), scaled(1.0))
    expected, expected_slope = quadrature(q, p, ONE, ONE)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)
    assert note == "closed form"


def test_the_note_says_why_it_is_sampled() -> None:
    def q(loc: Tensor) -> Any:
        return dist.StudentT(3.0 * ONE, loc, ONE)

    *_, note = bound(q, plain_p, scaled(1.0), scaled(1.0))
    assert note == "sampled: no closed form between StudentT and Normal"


def test_no_entropy_no_different_scales() -> None:
    """q is transformed: torch knows the KL of equal transforms, and no entropy."""
    flow = [dist.transforms.TanhTransform()]

    def q(loc: Tensor) -> Any:
        return dist.TransformedDistribution(plain_q(loc), flow)

    def p() -> Any:
        return dist.TransformedDistribution(plain_p(), flow)

    *_, note = bound(q, p, scaled(1.0), scaled(1.0))
    assert note == "closed form"
    *_, note = bound(q, p, scaled(1.0), scaled(2.0))
    assert note.startswith("sampled: model and guide scale it differently")


def test_impossible_categories_have_a_gradient() -> None:
    """Both sides rule a category out with logits of -inf, as masked actions do."""
    impossible = torch.tensor([0.0, 0.0, -math.inf])

    def program(logits: Tensor) -> None:
        pyro.sample("z", dist.Categorical(logits=logits + impossible))

    def guide() -> None:
        program(pyro.param("logits", torch.tensor([0.3, 0.1, 0.5])))

    loss = am.VariationalLoss(am.ELBO(kl="analytic"), "enumerate")
    value = loss.loss_and_grads(lambda: program(torch.zeros(3)), guide)
    q = torch.softmax(torch.tensor([0.3, 0.1]), 0)
    assert value == pytest.approx((q * (q * 2).log()).sum().item())
    slope = q * (q.log() - (q * q.log()).sum())
    gradient = pyro.get_param_store()["logits"].grad
    torch.testing.assert_close(gradient, torch.cat([slope, torch.zeros(1)]))
