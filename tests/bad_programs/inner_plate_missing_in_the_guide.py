"""Two nested plates in the model; the guide has the outer one only and shares its draw inside."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("plate-mismatch", site="effect", names="'pupils'", remedy="pyro.plate('pupils'")


def program() -> Pair:
    def model(x):
        with pyro.plate("schools", 4, dim=-2):
            with pyro.plate("pupils", 5, dim=-1):
                effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(4, 1))
        with pyro.plate("schools", 4, dim=-2):
            pyro.sample("effect", dist.Normal(loc, 1.0))

    return Pair(model, guide, torch.randn(4, 5))
