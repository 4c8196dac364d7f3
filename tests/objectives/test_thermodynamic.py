"""The thermodynamic objective as a function of log p and log q."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import amortized as am

pytestmark = pytest.mark.float64


def tables(count: int = 5) -> tuple[Tensor, Tensor]:
    """log p and log q ``[count, 3]``, attached."""
    generator = torch.Generator().manual_seed(1)
    log_p = torch.randn(count, 3, generator=generator) * 2
    log_q = torch.randn(count, 3, generator=generator)
    return log_p.requires_grad_(), log_q.requires_grad_()


def test_one_left_sum_is_the_mean_log_weight_and_one_right_sum_the_weighted_one() -> None:
    log_p, log_q = tables()
    log_w = (log_p - log_q).detach()
    lower = am.TVO(5, partition=1).bounds(log_p, log_q)[""]
    upper = am.TVO(5, partition=1, side="upper").bounds(log_p, log_q)[""]
    assert torch.allclose(lower, log_w.mean(0))
    assert torch.allclose(upper, (log_w.softmax(0) * log_w).sum(0))


def test_left_sums_rise_and_right_sums_fall_with_the_partition() -> None:
    log_p, log_q = tables()
    for side, sign in (("lower", 1.0), ("upper", -1.0)):
        values = [
            am.TVO(5, [i / n for i in range(n + 1)], side).bounds(log_p, log_q)[""]  # type: ignore[arg-type]
            for n in (1, 2, 4, 8)
        ]
        assert all(bool((sign * (b - a) > 0).all()) for a, b in pairwise(values))


def test_impossible_particles_are_silent_where_the_weight_is_zero() -> None:
    log_p, log_q = tables()
    with torch.no_grad():
        log_p[0] = -torch.inf
    value = am.TVO(5, [0.0, 1.0], "upper").bounds(log_p, log_q)[""]
    assert value.isfinite().all()
    for slope in torch.autograd.grad(value.sum(), [log_p, log_q]):
        assert slope.isfinite().all()


def test_a_number_of_intervals_puts_points_where_the_curve_is_steep() -> None:
    points = am.TVO(2, partition=3).partition
    assert points[0] == 0.0
    assert points[-1] == 1.0
    assert points[1] == pytest.approx(10**-1.09)
    assert points[2] == pytest.approx(10 ** (-1.09 / 2))
    assert am.TVO(2, partition=1).partition == (0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: am.TVO(1), r"num_particles=1.*at least 2.*covariance"),
        (lambda: am.TVO(2, partition=0), r"partition=0.*at least 1"),
        (lambda: am.TVO(2, partition=[0.0, 0.5]), r"partition=.*rise from 0.0 to 1.0"),
        (lambda: am.TVO(2, partition=[0.0, 0.7, 0.5, 1.0]), r"rise from 0.0 to 1.0"),
        (lambda: am.TVO(2, side="left"), r"side='left'.*'lower' or 'upper'"),
    ],
)
def test_arguments_are_checked(make: Any, sentence: str) -> None:
    with pytest.raises(am.UsageError, match=sentence):
        make()


def test_it_says_what_it_is() -> None:
    assert repr(am.TVO(3, [0, 0.5, 1], "upper")) == (
        "TVO(num_particles=3, partition=[0.0, 0.5, 1.0], side='upper')"
    )
