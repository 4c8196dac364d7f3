"""``infer={"enumerated": ...}``: Pyro ignores keys of ``infer`` that it does not know."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "enumeration-not-happening",
    site="k",
    names="'enumerated'",
    remedy="'enumerate'",
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
            pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerated": "parallel"})

    return Pair(model, guide, torch.randn(20))
