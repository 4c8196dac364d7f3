"""The model is told its rows; an autoguide without ``create_plates`` draws others.

Pyro lets the guide's indices win, so data and latents are misaligned in silence (pyro issue 3468).
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected("subsample-mismatch", site="z", names="'data'", remedy="create_plates")


def program() -> Pair:
    def model(x, rows):
        with pyro.plate("data", 500, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Pair(model, AutoNormal(model), (torch.randn(8), torch.arange(8)))
