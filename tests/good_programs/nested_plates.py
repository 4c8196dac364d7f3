"""Regions, cities in them, measurements in those: a latent on each level."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("regions", 3, dim=-3):
            region = pyro.sample("region", dist.Normal(mu, 1.0))
            with pyro.plate("cities", 4, dim=-2):
                city = pyro.sample("city", dist.Normal(region, 1.0))
                with pyro.plate("measurements", 5, dim=-1):
                    pyro.sample("x", dist.Normal(city, 1.0), obs=x)

    def guide(x):
        locs = {
            "mu": pyro.param("mu_loc", torch.zeros(())),
            "region": pyro.param("region_loc", torch.zeros(3, 1, 1)),
            "city": pyro.param("city_loc", torch.zeros(3, 4, 1)),
        }
        pyro.sample("mu", dist.Normal(locs["mu"], 0.1))
        with pyro.plate("regions", 3, dim=-3):
            pyro.sample("region", dist.Normal(locs["region"], 0.1))
            with pyro.plate("cities", 4, dim=-2):
                pyro.sample("city", dist.Normal(locs["city"], 0.1))

    return Pair(model, guide, torch.randn(3, 4, 5))
