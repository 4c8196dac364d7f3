"""``pyro.clear_param_store()`` stands in the guide, which so begins anew at every step."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("untrained-module", names="loc", remedy="clear_param_store", severity="warning")


def program() -> Pair:
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.clear_param_store()
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, torch.randn(20))
