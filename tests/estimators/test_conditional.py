"""The noise of a discrete value given the value: exact, differentiable, finite far out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from amortized.estimators.base import Site, TorchNoise
from amortized.estimators.conditional import carried, conditioned, logits_by_element
from tests.laws.test_in_the_mean import rejected


class Given:
    """Uniforms chosen beforehand."""

    def __init__(self, *uniforms: Tensor) -> None:
        self.uniforms = list(uniforms)

    def uniform(self, shape: tuple[int, ...], like: Tensor, *, site: str) -> Tensor:
        return self.uniforms.pop(0).expand(shape)


def bits(logits: Tensor) -> Site:
    return Site("z", dist.Bernoulli(logits=logits))


def one_hot(logits: Tensor) -> Site:
    return Site("z", dist.OneHotCategorical(logits=logits))


@pytest.mark.float64
def test_bits_against_the_textbook() -> None:
    """z~ = logits + logit(v'), v' = v p + 1 - p or v (1 - p); derivatives by autograd."""
    logits = (3 * torch.randn(2000)).requires_grad_()
    u, v = torch.rand(2, 2000)
    found = conditioned(bits(logits), logits, Given(u, v))
    p = logits.sigmoid()
    moved = torch.where(u > 1 - p, v * p + 1 - p, v * (1 - p))
    given = logits + moved.logit()
    (turn,) = torch.autograd.grad(given.sum(), logits)
    assert torch.equal(found.hard, (u > 1 - p).double())
    torch.testing.assert_close(found.free, (logits + u.logit()).detach())
    torch.testing.assert_close(found.given, given.detach())
    torch.testing.assert_close(found.turn, turn)


@pytest.mark.float64
def test_categories_against_the_textbook() -> None:
    logits = (2 * torch.randn(2000, 4)).requires_grad_()
    logs = logits.log_softmax(-1)
    u, v = torch.rand(2, 2000, 4)
    found = conditioned(one_hot(logits), logs, Given(u, v))
    e = -torch.log1p(-v)
    top = (e * found.hard).sum(-1, keepdim=True)
    leaf = logs.detach().requires_grad_()
    given = torch.where(found.hard > 0, -e.log(), -(e / leaf.exp() + top).log())
    (turn,) = torch.autograd.grad(given.sum(), leaf)
    torch.testing.assert_close(found.free, (logs - (-torch.log1p(-u)).log()).detach())
    assert torch.equal(found.hard.argmax(-1), found.free.argmax(-1))
    torch.testing.assert_close(found.given, given.detach())
    torch.testing.assert_close(found.turn, turn)


@pytest.mark.float64
@pytest.mark.parametrize("make", [bits, one_hot])
def test_tied_noise_is_the_conditional_map_at_noise_taken_from_z(make) -> None:
    """The uniforms that lead z~ back to z: the values are those of z, the derivatives the map's."""
    logits = torch.randn(2000, 3)
    logs = logits_by_element(make(logits).law)
    u = torch.rand(2000, 3)
    tied = conditioned(make(logits), logs, Given(u), tied=True)
    if make is bits:
        p = logits.sigmoid()
        v = torch.where(u > 1 - p, (u - 1 + p) / p, u / (1 - p))
    else:
        top = (-tied.free).exp().amin(-1, keepdim=True)
        e = torch.where(tied.hard > 0, top, logs.exp() * ((-tied.free).exp() - top))
        v = -torch.expm1(-e)
    free = conditioned(make(logits), logs, Given(u, v))
    assert torch.equal(tied.given, tied.free)
    torch.testing.assert_close(free.given, tied.free, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(free.turn, tied.turn, atol=1e-6, rtol=1e-6)


@pytest.mark.float64
@pytest.mark.parametrize("make", [bits, one_hot])
def test_given_the_value_the_noise_has_the_law_of_the_noise_that_made_it(make) -> None:
    """Moments of (b, z~) and (b, z), 2 10^5 draws; a mutant with logits that sum to 2 is found."""
    logits = torch.tensor([0.4, -1.3, 0.8])

    def draws(shift: float) -> tuple[Tensor, Tensor]:
        site = make(logits.expand(200_000, 3))
        logs = logits_by_element(site.law) + shift
        found = conditioned(site, logs, TorchNoise())
        rows = []
        for z in (found.free, found.given):
            parts = [found.hard * z, (1 - found.hard) * z, z**2, found.hard * z**2]
            parts += [z[..., [0]] * z[..., 1:], found.hard * z.roll(1, -1), z.sigmoid()]
            rows.append(torch.cat(parts, -1))
        return rows[0], rows[1]

    free, given = draws(0.0)
    assert not rejected(given - free, 0.0)
    if make is one_hot:
        free, given = draws(0.7)
        assert rejected(given - free, 0.0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [20.0, 80.0, 300.0])
@pytest.mark.parametrize("make", [bits, one_hot])
def test_far_out_in_float32(make, size: float, tied: bool) -> None:
    pyro.set_rng_seed(1)
    logits = torch.tensor([-size, 0.0, size]).expand(1000, 3)
    site = make(logits)
    found = conditioned(site, logits_by_element(site.law), TorchNoise(), tied=tied)
    for part in (found.free, found.given, found.turn):
        assert part.isfinite().all()
    assert (found.turn >= 0).all() and (found.turn <= 1).all()
    if make is bits:
        assert ((found.given > 0) == (found.hard > 0)).all()
    else:
        assert (
            found.given.gather(-1, found.hard.argmax(-1, True)) == found.given.amax(-1, True)
        ).all()


@pytest.mark.parametrize(
    ("law", "shape"),
    [
        (dist.Bernoulli(logits=torch.zeros(4)), (4,)),
        (dist.Bernoulli(torch.full((4, 2), 0.2)).to_event(1), (4, 2)),
        (dist.Categorical(logits=torch.zeros(4, 3)), (4, 3)),
        (dist.Categorical(logits=torch.zeros(4, 2, 3)).to_event(1), (4, 2, 3)),
        (dist.OneHotCategorical(logits=torch.zeros(4, 3)), (4, 3)),
        (dist.OneHotCategorical(logits=torch.zeros(3)).expand([4]), (4, 3)),
        (dist.Binomial(3, torch.full((4,), 0.3)), (4, 4)),
    ],
)
def test_logits_of_finite_laws(law: dist.Distribution, shape: tuple[int, ...]) -> None:
    found = logits_by_element(law)
    assert found.shape == shape
    if len(shape) > len(law.batch_shape + law.event_shape):
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(shape[:-1]))


def test_an_impossible_category_carries_no_gradient() -> None:
    logits = torch.tensor([0.0, -torch.inf], requires_grad=True)
    law = dist.OneHotCategorical(logits=logits)
    term = carried(torch.tensor([1.0, 2.0]), logits_by_element(law), law)
    assert term.item() == 0.0
    (grad,) = torch.autograd.grad(term, logits)
    assert grad.isfinite().all()
