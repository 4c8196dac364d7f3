"""The same plate, ``data`` in the model and ``batch`` in the guide.

With the whole data set this happens to be right; with minibatches only one of the two is scaled.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("plate-mismatch", site="z", names=("'data'", "'batch'"), remedy="same")


def program() -> Pair:
    encoder = nn.Linear(5, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(5)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), 1.0))

    return Pair(model, guide, torch.randn(20, 5))
