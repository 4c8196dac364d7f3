"""The intercept, slopes and noise of a regression under AutoDiagonalNormal, with particles."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(rugged, africa, log_gdp):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        design = torch.stack([africa, rugged, africa * rugged], -1)
        mean = a + (design * slopes).sum(-1)
        with pyro.plate("data", len(rugged)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)

    batch = {"rugged": torch.rand(20), "africa": torch.arange(20) % 2.0, "log_gdp": torch.randn(20)}
    guide = AutoDiagonalNormal(model)
    return Pair(model, guide, batch, am.VariationalLoss(am.ELBO(num_particles=2)))
