"""Percentages under a Dirichlet likelihood, which wants shares that sum to one."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="shares", names=("Dirichlet", "row"), remedy="sum")


def program() -> Pair:
    def model(shares):
        a = pyro.sample("a", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))
        with pyro.plate("data", len(shares)):
            pyro.sample("shares", dist.Dirichlet(a), obs=shares)

    def guide(shares):
        c = pyro.param("c", torch.full((3,), 2.0), constraint=dist.constraints.positive)
        pyro.sample("a", dist.Gamma(c, 1.0).to_event(1))

    return Pair(model, guide, 100.0 * torch.rand(20, 3).softmax(-1))
