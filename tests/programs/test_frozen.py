"""The guide's second run: what it must not move, and when it cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized as am


def networks(layer: nn.Module) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A guide whose network has something that moves, or is random, on its way."""
    encoder = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(3), 1.0).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return model, guide


def test_running_means_move_once() -> None:
    norm = nn.BatchNorm1d(4)
    model, guide = networks(norm)
    loss = am.VariationalLoss(estimators="doubly_reparameterized")
    x = torch.randn(6, 3)
    loss.warm_up(model, guide, x)
    loss.differentiable_loss(model, guide, x)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_guide_that_is_random_elsewhere_is_refused(vectorize: bool) -> None:
    model, guide = networks(nn.Dropout(0.5))
    loss = am.VariationalLoss(estimators={"z": am.DoublyReparameterized()}, vectorize=vectorize)
    with pytest.raises(am.ProgramError, match=r"site 'z'.*dropout.*am\.Pathwise"):
        loss.differentiable_loss(model, guide, torch.randn(6, 3))
