"""A rectifier makes concentrations of exactly zero."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected("invalid-parameter", site="topics", names="concentration", remedy="softplus")


def program() -> Pair:
    encoder = nn.Linear(6, 3)

    def model(words):
        with pyro.plate("documents", len(words)):
            theta = pyro.sample("topics", dist.Dirichlet(torch.ones(3)))
            probs = theta @ torch.softmax(torch.eye(3, 6), -1)
            pyro.sample("words", dist.Multinomial(probs=probs, validate_args=False), obs=words)

    def guide(words):
        pyro.module("encoder", encoder)
        with pyro.plate("documents", len(words)):
            pyro.sample("topics", dist.Dirichlet(torch.relu(encoder(words))))

    return Pair(model, guide, torch.poisson(torch.ones(20, 6)))
