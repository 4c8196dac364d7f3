"""Rows and columns have other dims in the guide; the table is square, so every shape fits."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("plate-mismatch", site="z", names=("'rows'", "'columns'"), remedy="dim=")


def program() -> Pair:
    def model(x):
        rows, columns = pyro.plate("rows", 6, dim=-2), pyro.plate("columns", 6, dim=-1)
        with rows, columns:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(6, 6))
        rows, columns = pyro.plate("rows", 6, dim=-1), pyro.plate("columns", 6, dim=-2)
        with rows, columns:
            pyro.sample("z", dist.Normal(loc, 1.0))

    return Pair(model, guide, torch.randn(6, 6))
