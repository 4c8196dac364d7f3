"""A call counter turns a second likelihood on after a few calls ("warm-up" inside the program).

How often the harness runs the program is not the user's to count: it also probes and checks.
"""

from itertools import count

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("structure-varies", site="y", remedy="argument", severity="warning")


def program() -> Pair:
    calls = count()

    def model(x, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            if next(calls) % 4 >= 2:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(x, y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, (torch.randn(20), torch.randn(20)))
