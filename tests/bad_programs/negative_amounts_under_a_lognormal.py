"""Refunds among payments, under a LogNormal likelihood inside ``.to_event(1)``."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="amount", names=("LogNormal", "row 8"), remedy="positive")


def program() -> Pair:
    def model(amount):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("customers", len(amount)):
            law = dist.LogNormal(loc, torch.ones(3)).to_event(1)
            pyro.sample("amount", law, obs=amount)

    def guide(amount):
        pyro.sample("loc", dist.Normal(pyro.param("q_loc", torch.tensor(0.0)), 0.1))

    amount = 0.1 + torch.rand(20, 3)
    amount[8, 1] = -5.0
    return Pair(model, guide, amount)
