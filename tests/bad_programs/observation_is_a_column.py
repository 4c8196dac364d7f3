"""Targets of shape ``[20, 1]`` from a data frame against a law of shape ``[20]``.

They broadcast to 20 x 20 (numpyro issue 1230: the user looked for the reason for a long time).
"""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "broadcast-observation",
    site="y",
    names="(20, 1)",
    remedy="squeeze(-1)",
    also=("undeclared-batch-dim",),
)


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(1))

    return Pair(model, guide, (torch.randn(20, 3), torch.ones(20, 1)))
