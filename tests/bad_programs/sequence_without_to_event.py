"""Words of sequences ``[20, 7]`` under a Categorical: the time dim is declared nowhere."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("undeclared-batch-dim", site="words", names="'data'", remedy=".to_event(1)")


def program() -> Pair:
    embedding, decoder = nn.Embedding(11, 2), nn.Linear(2, 7 * 11)

    def model(words):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(words)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = decoder(z).reshape(*z.shape[:-1], 7, 11)
            pyro.sample("words", dist.Categorical(logits=logits), obs=words)

    def guide(words):
        pyro.module("embedding", embedding)
        with pyro.plate("data", len(words)):
            pyro.sample("z", dist.Normal(embedding(words).mean(-2), 1.0).to_event(1))

    return Pair(model, guide, torch.arange(140).reshape(20, 7) % 11)
