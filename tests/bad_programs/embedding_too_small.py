"""There are more categories than the embedding has entries."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("program-raises", names="Embedding", remedy="num_embeddings")


def program() -> Pair:
    table, encoder, decoder = nn.Embedding(3, 6), nn.Linear(6, 4), nn.Linear(2, 4)

    def model(c):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(c)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("c", dist.Categorical(logits=decoder(z)), obs=c)

    def guide(c):
        pyro.module("table", table)
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(c)):
            loc, scale = encoder(table(c)).chunk(2, -1)
            scale = nn.functional.softplus(scale)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, torch.arange(20) % 4)
