"""Several rows for each patient: patients' effects in a plate of their own, gathered by index."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(patient, x):
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("patients", 6):
            effect = pyro.sample("effect", dist.Normal(0.0, spread))
        with pyro.plate("visits", len(x)):
            pyro.sample("x", dist.Normal(effect[patient], 1.0), obs=x)

    def guide(patient, x):
        loc = pyro.param("loc", torch.zeros(6))
        scale = pyro.param("scale", torch.full((6,), 0.1), constraint=constraints.positive)
        pyro.sample("spread", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 0.1))
        with pyro.plate("patients", 6):
            pyro.sample("effect", dist.Normal(loc, scale))

    return Pair(model, guide, {"patient": torch.arange(20) % 6, "x": torch.randn(20)})
