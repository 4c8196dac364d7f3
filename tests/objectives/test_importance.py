"""IWAE and Rényi as functions of log-weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import amortized as am
from amortized.surrogate.bound import by_rows

pytestmark = pytest.mark.float64


def weights(particles: int, seed: int = 0) -> torch.Tensor:
    """Log-weights ``[particles, 5]``."""
    return torch.randn(particles, 5, generator=torch.Generator().manual_seed(seed)) * 3


def test_iwae_is_the_log_of_the_mean_weight() -> None:
    log_w = weights(4)
    assert torch.allclose(am.IWAE(4).bound(log_w), log_w.exp().mean(0).log(), rtol=1e-13)


def test_large_weights_do_not_overflow() -> None:
    log_w = torch.tensor([[1000.0, -1000.0], [999.0, -1001.0]])
    expected = torch.tensor([1000.0, -1000.0]) + math.log((1 + math.exp(-1)) / 2)
    assert torch.allclose(am.IWAE(2).bound(log_w), expected)
    assert am.Renyi(-3.0, 2).bound(log_w).isfinite().all()


@pytest.mark.parametrize("alpha", [-50.0, -2.0, 0.0, 0.5, 1.0, 2.0, 50.0])
def test_one_particle_is_the_log_weight(alpha: float) -> None:
    log_w = weights(1)
    assert torch.allclose(am.Renyi(alpha, 1).bound(log_w), log_w[0], rtol=1e-12)


def test_renyi_falls_with_its_order_from_the_largest_to_the_smallest_weight() -> None:
    log_w = weights(6)
    orders = [-50.0, -2.0, 0.0, 0.5, 1 - 1e-5, 1.0, 1 + 1e-5, 2.0, 50.0]
    bounds = [am.Renyi(order, 6).bound(log_w) for order in orders]
    assert all((one >= other - 1e-12).all() for one, other in pairwise(bounds))
    assert torch.allclose(am.Renyi(0.0, 6).bound(log_w), am.IWAE(6).bound(log_w), rtol=1e-13)
    assert torch.allclose(am.Renyi(1.0, 6).bound(log_w), log_w.mean(0))
    assert torch.allclose(am.Renyi(1 - 1e-5, 6).bound(log_w), log_w.mean(0), atol=1e-3)


WRONG: list[tuple[Any, str]] = [
    (lambda: am.IWAE(0), r"IWAE\(num_particles=0\)"),
    (lambda: am.IWAE(2.0), r"IWAE\(num_particles=2\.0\)"),  # type: ignore[arg-type]
    (lambda: am.Renyi(0.5, 0), r"Renyi\(num_particles=0\)"),
    (lambda: am.Renyi(math.inf), r"Renyi\(alpha=inf\)"),
    (lambda: am.Renyi("0.5"), r"Renyi\(alpha='0\.5'\)"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(am.UsageError, match=message):
        make()


def test_they_print_as_they_are_typed() -> None:
    assert repr(am.IWAE(3)) == "IWAE(num_particles=3)"
    assert repr(am.Renyi(0.5, 3)) == "Renyi(alpha=0.5, num_particles=3)"


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 0.5, 1.0, 3.0])
def test_slopes_in_closed_form_are_those_of_the_bound(alpha: float) -> None:
    log_w = weights(6)
    objective = am.Renyi(alpha, 6)
    for known, derived in zip(objective.slopes(log_w), by_rows(objective, log_w), strict=True):
        assert torch.allclose(known, derived, rtol=1e-10, atol=1e-14)
    assert all(
        torch.equal(a, b)
        for a, b in zip(am.IWAE(6).slopes(log_w), am.Renyi(0.0, 6).slopes(log_w), strict=True)
    )
