"""Latent function values with a squared-exponential prior, and a guide with a full covariance."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x, y):
        length = pyro.param("length", torch.tensor(0.5), constraint=constraints.positive)
        noise = pyro.param("noise", torch.tensor(0.3), constraint=constraints.positive)
        gram = torch.exp(-0.5 * ((x - x.unsqueeze(-1)) / length) ** 2) + 1e-4 * torch.eye(len(x))
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), gram))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, noise), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(len(x)))
        tril = pyro.param("tril", torch.eye(len(x)), constraint=constraints.lower_cholesky)
        pyro.sample("f", dist.MultivariateNormal(loc, scale_tril=tril))

    x = torch.linspace(0.0, 1.0, 12)
    return Pair(model, guide, (x, torch.sin(6 * x)))
