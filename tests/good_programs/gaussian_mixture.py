"""A mixture of Gaussians: point estimates for what is global, the assignment enumerated."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.5)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[k], scale), obs=x)

    def guide(x):
        weights = pyro.param("weights_point", torch.full((2,), 0.5), constraint=constraints.simplex)
        scale = pyro.param("scale_point", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("weights", dist.Delta(weights).to_event(1))
        pyro.sample("scale", dist.Delta(scale))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Delta(pyro.param("locs_point", torch.tensor([-1.0, 1.0]))))
        probs = pyro.param(
            "assignments", torch.full((len(x), 2), 0.5), constraint=constraints.simplex
        )
        with pyro.plate("data", len(x)):
            pyro.sample("assignment", dist.Categorical(probs), infer={"enumerate": "parallel"})

    x = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
    return Pair(model, guide, x, am.VariationalLoss())
