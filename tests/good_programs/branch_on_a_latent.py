"""Python's ``if`` on a single draw: each branch has sites and parameters of its own."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        heavy = pyro.sample("heavy", dist.Bernoulli(0.5))
        if heavy:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            law = dist.StudentT(3.0, 0.0, scale)
        else:
            law = dist.Normal(0.0, pyro.param("narrow", torch.tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    def guide(x):
        heavy = pyro.sample("heavy", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.0))))
        if heavy:
            pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    return Pair(model, guide, torch.randn(20))
