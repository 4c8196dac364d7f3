"""The number of change points is drawn with numpy, in both programs and each for itself."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "structure-varies",
    remedy="pyro.sample",
    names="level_",
    severity="warning",
    also=("missing-in-guide", "missing-in-model"),
)


def program() -> Pair:
    def model(x):
        total = torch.zeros(())
        for k in range(np.random.randint(1, 6)):
            total = total + pyro.sample(f"level_{k}", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(6))
        for k in range(np.random.randint(1, 6)):
            pyro.sample(f"level_{k}", dist.Normal(loc[k], 1.0))

    return Pair(model, guide, torch.randn(20))
