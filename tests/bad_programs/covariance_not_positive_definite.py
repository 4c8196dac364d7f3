"""A free matrix is used as a covariance."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="w", names="covariance_matrix", remedy="scale_tril")


def program() -> Pair:
    def model(x, y):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(2))
        matrix = pyro.param("matrix", torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        pyro.sample("w", dist.MultivariateNormal(loc, matrix))

    return Pair(model, guide, (torch.randn(20, 2), torch.randn(20)))
