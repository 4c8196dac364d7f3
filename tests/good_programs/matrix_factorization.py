"""Ratings as products of user and item vectors; most entries are unknown and masked."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(ratings, known):
        users = pyro.plate("users", ratings.shape[0], dim=-2)
        items = pyro.plate("items", ratings.shape[1], dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with items:
            v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with users, items, poutine.mask(mask=known):
            pyro.sample("rating", dist.Normal((u * v).sum(-1), 0.5), obs=ratings)

    batch = (torch.randn(8, 6), torch.rand(8, 6) > 0.7)
    return Pair(model, AutoNormal(model), batch)
