"""The guide asks for enumeration, and a mapping from an earlier experiment samples the site."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "enumeration-not-happening",
    site="k",
    names="mapping",
    remedy="am.Enumerate()",
    severity="warning",
)


def program() -> Pair:
    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(len(x), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    return Pair(
        model, guide, torch.randn(20), am.VariationalLoss(estimators={"k": "score_function"})
    )
