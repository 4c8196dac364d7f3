"""Amortized LDA: topics are global, a network predicts each document's weights from its words."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from tests.catalogue import Pair


def program() -> Pair:
    network = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))

    def model(counts):
        with pyro.plate("topics", 3):
            words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(9) / 9))
        with pyro.plate("documents", len(counts)):
            weights = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(3)))
            law = dist.Multinomial(probs=weights @ words, validate_args=False)
            pyro.sample("doc_words", law, obs=counts)

    def guide(counts):
        pyro.module("network", network)
        start = torch.full((3, 9), 2.0)
        posterior = pyro.param("topics_posterior", start, constraint=constraints.positive)
        with pyro.plate("topics", 3):
            pyro.sample("topic_words", dist.Dirichlet(posterior))
        with pyro.plate("documents", len(counts)):
            pyro.sample("doc_topics", dist.Dirichlet(0.1 + softplus(network(counts))))

    return Pair(model, guide, torch.poisson(torch.full((12, 9), 2.0)))
