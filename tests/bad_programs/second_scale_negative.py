"""The second of three latents has a scale below zero; the others are fine."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="b", names="scale", remedy="constraint")


def program() -> Pair:
    def model(x):
        total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(x):
        start = {"a": 0.1, "b": -0.1, "c": 0.2}
        for name in "abc":
            loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
            scale = pyro.param(f"{name}_scale", torch.tensor(start[name]))
            pyro.sample(name, dist.Normal(loc, scale))

    return Pair(model, guide, torch.randn(20))
