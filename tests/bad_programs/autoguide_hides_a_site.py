"""A discrete site was hidden from the autoguide and then forgotten.

``poutine.block`` is what Pyro's tutorials do before enumeration in the model; here nothing takes
care of the hidden site.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="assignment", remedy="pyro.sample('assignment'")


def program() -> Pair:
    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(locs[..., k], 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["assignment"]))
    return Pair(model, guide, torch.randn(20))
