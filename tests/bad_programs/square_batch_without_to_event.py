"""``.to_event(1)`` is missing, and the batch has as many rows as columns: Pyro sees no clash.

The plate takes the columns for the rows.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="x", remedy=".to_event(1)")


def program() -> Pair:
    encoder, decoder = nn.Linear(8, 2), nn.Linear(2, 8)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return Pair(model, guide, torch.randn(8, 8))
