"""Integer counts under Poisson and integer labels under Categorical, as the loaders give them."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


def program() -> Pair:
    encoder = nn.Linear(1, 2)

    def model(counts, labels):
        table = pyro.param("table", torch.zeros(2, 3))
        with pyro.plate("data", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("counts", dist.Poisson(z.sum(-1).exp()), obs=counts)
            pyro.sample("labels", dist.Categorical(logits=z @ table), obs=labels)

    def guide(counts, labels):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(counts)):
            loc = encoder(counts.float().log1p().unsqueeze(-1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Pair(model, guide, (torch.arange(20) % 5, torch.arange(20) % 3))
