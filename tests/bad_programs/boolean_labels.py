"""Labels from a comparison are booleans, which Bernoulli's log-probability cannot subtract."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "data-dtype", site="y", names="bool", remedy=".float()", also=("program-raises",)
)


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))

    x = torch.randn(20, 2)
    return Pair(model, guide, (x, x[:, 0] > 0))
