"""An autoguide was built on an earlier version of the model and kept after a renaming.

Happens in notebooks: the cell of the model is edited and run again, the cell of the guide is not.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "missing-in-guide", site="noise", remedy="pyro.sample('noise'", also=("missing-in-model",)
)


def program() -> Pair:
    def older(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, sigma), obs=x)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, noise), obs=x)

    return Pair(model, AutoNormal(older), torch.randn(20))
