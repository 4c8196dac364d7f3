"""The guide has more categories than the model: some draws have no prior probability."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("support-mismatch", site="k", remedy="3", also=("program-raises",))


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(5))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    return Pair(model, guide, torch.randn(20))
