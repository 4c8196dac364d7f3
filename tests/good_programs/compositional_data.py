"""Shares under a Dirichlet, proportions inside (0, 1) under a Beta, directions as one-hot rows."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(shares, part, kind):
        a = pyro.sample("a", dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1))
        with pyro.plate("data", len(shares)):
            pyro.sample("shares", dist.Dirichlet(a), obs=shares)
            pyro.sample("part", dist.Beta(a[..., 0], a[..., 1]), obs=part)
            pyro.sample("kind", dist.OneHotCategorical(a / a.sum(-1, keepdim=True)), obs=kind)

    shares, part = torch.randn(20, 3).softmax(-1), 0.05 + 0.9 * torch.rand(20)
    return Pair(model, AutoNormal(model), (shares, part, torch.eye(3)[torch.arange(20) % 3]))
