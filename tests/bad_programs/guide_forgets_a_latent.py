"""A second latent was added to the model and not to the guide.

Pyro only warns ("Found vars in model but not guide") and draws the site from its prior, so the
posterior of that site is the prior and nothing looks wrong (pyro issue 2288).
"""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("missing-in-guide", site="slope", remedy="pyro.sample('slope'")


def program() -> Pair:
    def model(x, y):
        intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("intercept", dist.Normal(loc, scale))

    x = torch.linspace(-1.0, 1.0, 20)
    return Pair(model, guide, (x, 1.0 + 2.0 * x))
