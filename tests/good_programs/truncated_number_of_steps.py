"""A latent count decides how many further latents there are, in model and guide alike."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        n = int(pyro.sample("n", dist.Categorical(torch.ones(3) / 3)))
        total = x.new_zeros(())
        for i in range(n + 1):
            total = total + pyro.sample(f"bump_{i}", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        n = int(pyro.sample("n", dist.Categorical(logits=logits)))
        for i in range(n + 1):
            loc = pyro.param(f"loc_{i}", torch.tensor(0.0))
            pyro.sample(f"bump_{i}", dist.Normal(loc, 0.5))

    return Pair(model, guide, torch.randn(20))
