"""A guide of Pyro's EasyGuide, one group of sites for a MultivariateNormal."""

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide

from tests.catalogue import Pair


class Guide(EasyGuide):
    def guide(self, x, y):
        group = self.group(match="a|b")
        loc = pyro.param("loc", torch.zeros(group.event_shape))
        tril = pyro.param(
            "tril", torch.eye(group.event_shape[0]), constraint=dist.constraints.lower_cholesky
        )
        group.sample("joint", dist.MultivariateNormal(loc, scale_tril=tril))


def program() -> Pair:
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)

    return Pair(model, Guide(model), (torch.randn(20), torch.randn(20)))
