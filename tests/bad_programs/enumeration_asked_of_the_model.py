"""``config_enumerate`` around the model, while the guide samples the site by itself."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "enumeration-not-happening",
    site="k",
    names="model",
    remedy=("guide", "am.Enumerate()"),
    severity="warning",
)


def program() -> Pair:
    @config_enumerate
    def model(x):
        locs = pyro.param("locs", torch.linspace(-3.0, 3.0, 3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(len(x), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    return Pair(model, guide, torch.randn(20))
