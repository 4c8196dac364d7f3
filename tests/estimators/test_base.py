"""The protocol's own pieces: noise, sites, draws, costs, and an estimator from outside."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.estimators.base import Cost, Draw, Estimator, Noise, Site, TorchNoise, base_of

NORMAL = dist.Normal(torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize(
    "wrapped",
    [
        NORMAL,
        NORMAL.to_event(1),
        NORMAL.mask(torch.tensor([True, False, True])),
        NORMAL.mask(False).to_event(1),
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(1).to_event(1),
    ],
)
def test_base_of_sees_through_wrappers(wrapped: dist.Distribution) -> None:
    assert type(base_of(wrapped)) is dist.Normal
    assert Site("z", wrapped).family == "Normal"


def test_base_of_keeps_what_changes_the_law() -> None:
    """A transformed normal is no normal."""
    assert Site("z", dist.LogNormal(0.0, 1.0)).family == "LogNormal"


def test_sample_carries_no_gradient_and_rsample_does() -> None:
    loc = torch.zeros(3, requires_grad=True)
    law, noise = dist.Normal(loc, 1.0), TorchNoise()
    assert not noise.sample(law, (5,), site="z").requires_grad
    value = noise.rsample(law, (5,), site="z")
    assert value.shape == (5, 3)
    value.sum().backward()
    assert loc.grad is not None and loc.grad.tolist() == [5.0] * 3


def test_uniform_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """log(0) would make an infinite draw once in 2^24."""
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.zeros(shape, **kw))
    like = torch.zeros((), dtype=torch.float32)
    u = TorchNoise().uniform((4,), like, site="z")
    assert u.dtype == torch.float32 and bool((u.log() > -200).all())


def test_a_draw_scores_with_the_law_of_the_site() -> None:
    loc = torch.tensor(0.3, requires_grad=True)
    draw = Draw(Site("z", dist.Normal(loc, 1.0)), torch.tensor(1.3))
    (score,) = torch.autograd.grad(draw.log_prob, loc)
    assert score.item() == pytest.approx(1.0)


def test_a_detached_cost_has_the_same_numbers_and_no_graph() -> None:
    x = torch.ones(2, requires_grad=True)
    cost = Cost(2 * x, 3 * x).detach()
    assert cost.peers is not None and not cost.copies.requires_grad and not cost.peers.requires_grad
    assert cost.copies.tolist() == [2.0, 2.0] and cost.peers.tolist() == [3.0, 3.0]
    assert Cost(x).detach().peers is None


def test_an_estimator_must_say_how_it_draws() -> None:
    class Lazy(Estimator):
        """Says nothing."""

    with pytest.raises(TypeError, match="draw"):
        Lazy()  # type: ignore[abstract]


class FromOutside(Estimator):
    """The score function in eight lines, as a user would write it."""

    def draw(self, site: Site, noise: Noise) -> Draw:
        return Draw(site, noise.sample(site.law, site=site.name))

    def surrogate(self, draw: Draw, cost: Cost) -> Tensor:
        return (draw.log_prob - draw.log_prob.detach()) * cost.copies.detach()


def model() -> None:
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Poisson(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))


def guide() -> None:
    rate = pyro.param("rate", torch.tensor([1.0, 1.5, 2.0]))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Poisson(rate))


def test_an_estimator_from_outside_serves_a_site() -> None:
    gradients = []
    for estimator in (FromOutside(), am.ScoreFunction()):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        am.VariationalLoss(estimators={"z": estimator}).loss_and_grads(model, guide)
        gradients.append(pyro.get_param_store()["rate"].grad)
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
