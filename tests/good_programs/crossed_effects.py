"""Pupils and tasks: two crossed plates with a latent in each, and a table of answers."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def plates(x):
        return pyro.plate("pupils", x.shape[0], dim=-2), pyro.plate("tasks", x.shape[1], dim=-1)

    def model(x):
        pupils, tasks = plates(x)
        with pupils:
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with tasks:
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with pupils, tasks:
            pyro.sample("answer", dist.Bernoulli(logits=ability - difficulty), obs=x)

    def guide(x):
        pupils, tasks = plates(x)
        for name, plate, shape in (
            ("ability", pupils, (x.shape[0], 1)),
            ("difficulty", tasks, (x.shape[1],)),
        ):
            loc = pyro.param(f"{name}_loc", torch.zeros(shape))
            scale = pyro.param(f"{name}_scale", torch.ones(shape), constraint=constraints.positive)
            with plate:
                pyro.sample(name, dist.Normal(loc, scale))

    return Pair(model, guide, torch.bernoulli(torch.full((8, 5), 0.6)))
