"""A one-hot draw in the guide for an integer index in the model."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "event-shape-mismatch",
    site="k",
    remedy="Categorical",
    also=("support-mismatch", "program-raises"),
)


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 4))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            pyro.sample("x", dist.Normal(locs[k.long()], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(logits=logits))

    return Pair(model, guide, torch.randn(20))
