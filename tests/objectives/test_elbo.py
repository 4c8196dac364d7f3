"""The ELBO's arguments and its bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import amortized as am


@pytest.mark.parametrize("count", [0, -1, 2.5, "2"])
def test_particles_are_counted_from_one(count: Any) -> None:
    with pytest.raises(am.UsageError, match=rf"ELBO\(num_particles={count!r}\)"):
        am.ELBO(num_particles=count)


@pytest.mark.parametrize("kl", ["closed", "", None, True])
def test_the_two_forms_of_the_kl(kl: Any) -> None:
    with pytest.raises(am.UsageError, match=r"ELBO\(kl=.*'sample' or 'analytic'"):
        am.ELBO(kl=kl)


def test_only_the_analytic_form_asks_for_closed_forms() -> None:
    assert am.ELBO(kl="analytic").analytic_kl and not am.ELBO(kl="sample").analytic_kl


def test_the_bound_is_the_mean_of_log_weights() -> None:
    log_weights = torch.tensor([[-1.0, 2.0], [-3.0, 6.0]])
    assert am.ELBO(num_particles=2).bound(log_weights).tolist() == [-2.0, 4.0]


def test_repr_is_what_one_would_type() -> None:
    assert repr(am.ELBO(3, "analytic")) == "ELBO(num_particles=3, kl='analytic')"
