"""The data dim is in no plate: independent rows, and nothing says so.

Everything is summed all the same, but minibatches cannot be scaled, numbers are totals, and Pyro
refuses the shape.
"""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="x", remedy=("pyro.plate", ".to_event("))


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, torch.ones(len(x))), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
