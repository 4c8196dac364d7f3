"""A Normal guide for Dirichlet weights: the draw does not lie on the simplex."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "support-mismatch", site="weights", remedy="Dirichlet", also=("invalid-parameter",)
)


def program() -> Pair:
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(weights), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.full((3,), 1 / 3))
        pyro.sample("weights", dist.Normal(loc, 0.01).to_event(1))

    return Pair(model, guide, torch.randint(3, (20,)))
