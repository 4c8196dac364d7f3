"""A simulator in numpy stands between the latent and the data."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("detached-latent", site="growth", names="'x'", remedy=".numpy()")


def program() -> Pair:
    time = np.linspace(0.0, 1.0, 20)

    def simulated(growth, start):
        return torch.from_numpy(np.exp(growth.detach().numpy() * time)).float() * start

    def model(x):
        start = pyro.sample("start", dist.LogNormal(0.0, 1.0))
        growth = pyro.sample("growth", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(simulated(growth, start), 0.1), obs=x)

    def guide(x):
        pyro.sample("start", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        pyro.sample("growth", dist.Normal(pyro.param("rate", torch.tensor(0.5)), 0.1))

    return Pair(model, guide, torch.linspace(1.0, 2.0, 20))
