"""One plate, entered again at each time step by its name."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    cell, to_loc = nn.GRUCell(1, 3), nn.Linear(3, 1)

    def model(x):
        z = x.new_zeros(())
        for t in range(x.shape[1]):
            with pyro.plate("data", len(x)):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        pyro.module("cell", cell)
        pyro.module("to_loc", to_loc)
        h = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h = cell(x[:, t : t + 1], h)
            with pyro.plate("data", len(x)):
                pyro.sample(f"z_{t}", dist.Normal(to_loc(h).squeeze(-1), 1.0))

    return Pair(model, guide, torch.randn(20, 3), am.VariationalLoss(am.ELBO(num_particles=2)))
