"""A program file for ``torchrun -m amortized fit``."""

from __future__ import annotations

import os
import time

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortized.fit.program import Program


def program(slow: float = 0.0, broken: bool = False, early: bool = False) -> Program:
    """An autoencoder of a layer; ``broken``: in the second process, at some step.

    With ``early`` the second process ends at once when it is first started.
    """
    if early and os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(9)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    encode, decode = nn.Linear(3, 6), nn.Linear(3, 3)
    steps: list[int] = []

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        time.sleep(slow)
        steps.append(1)
        if broken and len(steps) > 20 and os.environ.get("RANK") == "1":
            raise ValueError("out of luck")
        pyro.module("encode", encode)
        loc, scale = encode(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return Program(model, guide, train=x[:150], val=x[150:175], test=x[175:])
