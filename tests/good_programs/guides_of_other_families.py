"""Normal guides for priors of other families on the whole line, a Weibull for a HalfCauchy."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        a = pyro.sample("a", dist.StudentT(3.0))
        b = pyro.sample("b", dist.Laplace(0.0, 1.0))
        c = pyro.sample("c", dist.Logistic(0.0, 1.0))
        d = pyro.sample("d", dist.Gumbel(0.0, 1.0))
        e = pyro.sample("e", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b + c + d, e), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(5))
        scale = pyro.param("scale", torch.full((5,), 0.1), constraint=constraints.positive)
        for i, name in enumerate("abcd"):
            pyro.sample(name, dist.Normal(loc[i], scale[i]))
        pyro.sample("e", dist.Weibull(loc[4].exp(), 2.0))

    return Pair(model, guide, torch.randn(20))
