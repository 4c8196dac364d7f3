"""An image ``[batch, 1, 4, 6]`` with ``.to_event(1)`` where three dims belong to the event.

After a question on Pyro's tracker (issue 2969).
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="obs", names="'data'", remedy=".to_event(3)")


def program() -> Pair:
    encoder, decoder = nn.Linear(24, 2), nn.Linear(2, 24)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z).reshape(*z.shape[:-1], 1, 4, 6)
            pyro.sample("obs", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x.flatten(1)), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(20, 1, 4, 6))
