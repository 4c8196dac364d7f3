"""Reweighted wake-sleep and the forward KL as functions of log p and log q."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import amortized as am
from amortized.objectives.wake_sleep import weighted

pytestmark = pytest.mark.float64


def tables() -> tuple[Tensor, Tensor]:
    """log p and log q ``[4, 3]``, attached."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(4, 3, generator=generator) * 2
    log_q = torch.randn(4, 3, generator=generator)
    return log_p.requires_grad_(), log_q.requires_grad_()


def test_each_of_the_two_parts_moves_its_own_side() -> None:
    log_p, log_q = tables()
    weights = (log_p - log_q).detach().softmax(0)
    parts = am.ReweightedWakeSleep(4).bounds(log_p, log_q)
    (slope,) = torch.autograd.grad(parts["model"].sum(), log_p)
    assert torch.allclose(slope, weights)
    (slope,) = torch.autograd.grad(parts["guide"].sum(), log_q)
    assert torch.allclose(slope, weights)
    assert torch.autograd.grad(parts["guide"].sum(), log_p, allow_unused=True) == (None,)
    assert torch.allclose(parts["model"], am.IWAE(4).bound(log_p - log_q))


def test_sleep_leaves_the_guide_out() -> None:
    assert sorted(am.ReweightedWakeSleep(1, phi="sleep").bounds(*tables())) == ["model"]


def test_a_mix_weighs_wake() -> None:
    whole = am.ReweightedWakeSleep(4).bounds(*tables())["guide"]
    part = am.ReweightedWakeSleep(4, phi=0.25).bounds(*tables())["guide"]
    assert torch.allclose(part, 0.25 * whole)
    assert am.ReweightedWakeSleep(4, phi=0.25).simulated == 0.75


def test_an_impossible_particle_is_silent() -> None:
    log_p, log_q = tables()
    with torch.no_grad():
        log_p[0] = -torch.inf
    part = am.ReweightedWakeSleep(4).bounds(log_p, log_q)["guide"]
    (slope,) = torch.autograd.grad(part.sum(), log_q)
    assert slope.isfinite().all()
    assert slope[0].tolist() == [0.0, 0.0, 0.0]
    assert weighted(torch.tensor([0.0, 1.0]), torch.tensor([torch.inf, 2.0])) == 2.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: am.ReweightedWakeSleep(1), r"num_particles=1.*at least 2.*says nothing of phi"),
        (lambda: am.ReweightedWakeSleep(0, phi="sleep"), r"at least 1"),
        (lambda: am.ReweightedWakeSleep(phi="dream"), r"phi='dream'.*'wake', 'sleep'"),
        (lambda: am.ReweightedWakeSleep(phi=1.5), r"phi=1.5.*between 0 and 1"),
        (lambda: am.ForwardKL({"x": 3}), r"observed=.*argument by the name of the site"),
        (lambda: am.ForwardKL({"x": "y"}, simulate=False), r"stored set.*leave out observed"),
        (lambda: am.ForwardKL(simulate=1), r"simulate=1.*True or False"),
    ],
)
def test_arguments_are_checked(make: Any, sentence: str) -> None:
    with pytest.raises(am.UsageError, match=sentence):
        make()


def test_they_say_what_they_are() -> None:
    assert repr(am.ForwardKL(simulate=False)) == "ForwardKL(simulate=False)"
    assert am.ForwardKL().bounds(*tables()) == {}
    with pytest.raises(am.UsageError, match="no function of the log-weights"):
        am.ForwardKL().bound(torch.zeros(2))
