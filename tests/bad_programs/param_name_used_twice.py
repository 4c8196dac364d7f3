"""``pyro.param("loc")`` of two shapes: the second statement gets the first one's tensor."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "parameter-collision", names="'loc'", remedy="name", also=("broadcast-observation",)
)


def program() -> Pair:
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + loc, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 3))
