"""A misspelt site, and a likelihood that lacks ``.to_event(1)``: both show in one report.

Expected here is the second; the collector lets the first stand beside it.
"""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "undeclared-batch-dim",
    site="x",
    remedy=".to_event(1)",
    also=("missing-in-guide",),
)


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("zz", dist.Normal(loc, 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 3))
