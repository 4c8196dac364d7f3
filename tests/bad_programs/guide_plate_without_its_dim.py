"""Crossed plates have their dims in the model; in the guide Pyro gives both -1."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("plate-mismatch", site="ability", names="'pupils'", remedy="dim=")


def program() -> Pair:
    def model(x):
        pupils, tasks = pyro.plate("pupils", 8, dim=-2), pyro.plate("tasks", 5, dim=-1)
        with pupils:
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with tasks:
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pupils, tasks:
            logits = ability.reshape(8, 1) - difficulty
            pyro.sample("answer", dist.Bernoulli(logits=logits), obs=x)

    def guide(x):
        with pyro.plate("pupils", 8):
            pyro.sample("ability", dist.Normal(pyro.param("a", torch.zeros(8)), 0.1))
        with pyro.plate("tasks", 5):
            pyro.sample("difficulty", dist.Normal(pyro.param("d", torch.zeros(5)), 0.1))

    return Pair(model, guide, torch.ones(8, 5))
