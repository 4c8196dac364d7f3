"""Gradients through checkpoints are those without: measured ones, too."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.checkpoint import checkpoint

import amortized as am
from amortized.compare.candidates import Ours, Pair
from amortized.compare.groups import trained
from amortized.compare.pilot.attempt import Attempt, Setting
from amortized.estimators.choice import NAMES, estimator_of


class Checkpointed(nn.Module):
    """Bits whose logits a network gives, and that another one decodes."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.decoder = nn.Linear(3, 6)
        self.reentrant = reentrant
        self.x = (torch.rand(5, 6) < 0.5).to(torch.get_default_dtype())

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=torch.zeros(3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(b)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        x = x.clone().requires_grad_()  # a reentrant checkpoint has no gradient without
        logits: Any = self.encoder(x)
        if self.reentrant is not None:
            logits = checkpoint(self.encoder, x, use_reentrant=self.reentrant)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))


def serving() -> list[str]:
    pair = Checkpointed(None)
    names = []
    for name in NAMES:
        loss = am.VariationalLoss(estimators={"b": name})
        try:
            loss.warm_up(pair.model, pair.guide, pair.x)
        except am.EstimatorError:
            continue
        names.append(name)
    return names


SERVING = serving()


def test_most_estimators_are_among_them():
    assert len(SERVING) >= 10


def compared(name: str, pair: Pair, leaves: list[torch.Tensor]) -> torch.Tensor:
    candidate = Ours(am.VariationalLoss(estimators={"b": name}))
    candidate.prepare(pair, 2)
    pyro.set_rng_seed(5)
    return candidate.gradient(pair, leaves)


def piloted(name: str, pair: Pair, leaves: list[torch.Tensor]) -> torch.Tensor:
    setting = Setting(pair, am.VariationalLoss(), lambda: 0.0, warmup_steps=2)
    attempt = Attempt(setting, trained(pair), {"b": estimator_of(name)})
    pyro.set_rng_seed(4)
    attempt.prepare(warm=True)
    pyro.set_rng_seed(5)
    return attempt.gradient()[: sum(leaf.numel() for leaf in leaves)]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", SERVING)
@pytest.mark.parametrize("measured", [compared, piloted])
def test_one_gradient(measured: Any, name: str, reentrant: bool) -> None:
    found = []
    for kind in (reentrant, None):
        pyro.clear_param_store()
        programs = Checkpointed(kind)
        pair = Pair(programs.model, programs.guide, programs.x)
        pyro.set_rng_seed(3)
        leaves = list(trained(pair).leaves.values())
        assert sum(leaf.numel() for leaf in leaves) == sum(p.numel() for p in programs.parameters())
        found.append(measured(name, pair, leaves))
        assert all(p.grad is None for p in programs.parameters())
    ours, plain = found
    assert torch.allclose(ours, plain, atol=1e-9)
    encoder = plain[programs.decoder.weight.numel() :]
    assert encoder.abs().max() > 1e-3


def test_a_comparison_sees_them() -> None:
    rows = []
    for kind in (True, None):
        pyro.clear_param_store()
        programs = Checkpointed(kind)
        found = am.compare_gradients(
            programs.model,
            programs.guide,
            programs.x,
            {"disarm": "disarm", "pyro": Trace_ELBO()},
            num_draws=200,
            seed=0,
        )
        rows.append([(row.size, row.norm, row.variance, row.flagged) for row in found.rows])
    for ours, plain in zip(*rows, strict=True):
        assert ours == pytest.approx(plain, rel=1e-6)
        assert ours[1] > 1e-3


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_the_check_sees_gradients_through_checkpoints(reentrant: bool | None) -> None:
    pair = Checkpointed(reentrant)
    report = am.check(pair.model, pair.guide, pair.x)
    assert "no-gradient" not in {finding.code for finding in report.findings}
    assert all(leaf.grad is None for leaf in pair.parameters())
