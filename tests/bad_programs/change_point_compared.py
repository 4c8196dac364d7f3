"""A change point is compared with the times of the data: no gradient tells where it is."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "detached-latent", site="when", names="'x'", remedy="ScoreFunction", severity="warning"
)


def program() -> Pair:
    time = torch.linspace(0.0, 1.0, 50)

    def model(x):
        when = pyro.sample("when", dist.Beta(2.0, 2.0))
        level = torch.where(time < when, 0.0, 3.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level, 1.0), obs=x)

    def guide(x):
        a, b = (pyro.param(name, torch.tensor(2.0)) for name in ("a", "b"))
        pyro.sample("when", dist.Beta(a.exp(), b.exp()))

    return Pair(model, guide, torch.where(time < 0.3, 0.0, 3.0) + 0.1 * torch.randn(50))
