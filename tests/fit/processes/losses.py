"""Objectives and estimators with parts of their own, trained by several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortized as am
from tests.fit.processes.jobs import data

LOSSES: dict[str, Callable[[], am.VariationalLoss]] = {
    "leave_one_out": lambda: am.VariationalLoss(estimators={"b": "leave_one_out"}),
    "rebar": lambda: am.VariationalLoss(estimators={"b": "rebar"}),
    "relax": lambda: am.VariationalLoss(estimators={"b": am.RELAX()}),
    "wake_sleep": lambda: am.VariationalLoss(am.ReweightedWakeSleep(5)),
    "iwae": lambda: am.VariationalLoss(am.IWAE(5)),
}


def pair(loss: am.VariationalLoss) -> am.SVI:
    """Four bits, and three numbers that depend on them."""
    torch.manual_seed(0)
    encode, decode = nn.Linear(3, 4), nn.Linear(4, 3)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5).expand([4]).to_event(1))
            pyro.sample("x", dist.Normal(decode(b), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=encode(x)).to_event(1))

    return am.SVI(model, guide, loss, lr=0.02, compile="off")


def evidence(folder: Path) -> Any:
    """Of each loss the evidence bound after training, over 5 seeds."""
    found: dict[str, list[float]] = {}
    for name, make in LOSSES.items():
        for seed in range(5):
            svi = pair(make())
            options = {"max_epochs": 15, "batch_size": 20, "progress": False, "check": False}
            svi.fit(data(200), seed=seed, **options)
            numbers = svi.evaluate(data(200), 20, seed=seed)
            found.setdefault(name, []).append(numbers["log_evidence"])
    return found
