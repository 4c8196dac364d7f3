"""Rainfall of exactly zero under a Gamma likelihood."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="rain", names=("Gamma", "row", "5"), remedy="positive")


def program() -> Pair:
    def model(rain):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("days", len(rain)):
            pyro.sample("rain", dist.Gamma(2.0, rate), obs=rain)

    def guide(rain):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("rate", dist.Gamma(a, 1.0))

    rain = 0.1 + torch.rand(20)
    rain[5] = 0.0
    return Pair(model, guide, rain)
