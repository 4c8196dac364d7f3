"""Small programs at the top of a module, so that other processes can import them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortized as am
from amortized.compare.training.trial import Job, Plan
from amortized.loss import VariationalLoss


def bits(size: int = 3, rows: int = 40) -> am.Program:
    """Bits under a Bernoulli likelihood, random networks and random data."""
    data = torch.bernoulli(torch.full((rows, 6), 0.3))
    decoder, encoder = nn.Linear(size, 6), nn.Linear(6, size)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5 * torch.ones(len(x), size)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(b)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return am.Program(model, guide, train=data[: rows // 2], val=data[rows // 2 :])


def level_model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    shift = pyro.param("shift", lambda: torch.randn(()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def level_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 0.1))


def level() -> am.Program:
    """A global latent, and parameters that are made as the programs run, at random."""
    return am.Program(level_model, level_guide, train=torch.linspace(-1.0, 3.0, 12))


def _overflowing(x: Tensor, steps: list[int], last: int) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    steps[0] += 1
    worst = 1e38 if steps[0] > last else 1.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z * worst * worst, 1.0), obs=x)


def overflowing(last: int = 30) -> am.Program:
    """Not finite after so many runs of the model."""
    model = partial(_overflowing, steps=[0], last=last)
    return am.Program(model, level_guide, train=torch.linspace(-1.0, 3.0, 12))


def plan(program: Any = bits, **changes: Any) -> Plan:
    """Few steps."""
    asked: dict[str, Any] = {
        "program": program,
        "options": {},
        "max_steps": 6,
        "check_every": 2,
        "batch_size": 10,
        "lr": 0.05,
        "optimizer": torch.optim.Adam,
        "data_plate": None,
        "particles": 2,
        "compile": "off",
        "device": None,
        "threads": 1,
        "training": {},
    }
    return Plan(**{**asked, **changes})


def job(estimators: Any = "leave_one_out", seed: int = 0, **changes: Any) -> Job:
    """One trial."""
    asked: dict[str, Any] = {"candidate": "one", "place": 1, "checked": True, "seed": seed}
    return Job(loss=VariationalLoss(estimators=estimators), **{**asked, **changes})
