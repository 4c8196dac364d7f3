"""Correlated intercepts and slopes: an LKJ prior on a Cholesky factor, with AutoNormal."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(group, x, y):
        scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
        tril = scales.unsqueeze(-1) * factor
        with pyro.plate("groups", 4):
            effects = pyro.sample(
                "effects", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril)
            )
        with pyro.plate("data", len(x)):
            mean = effects[..., group, 0] + effects[..., group, 1] * x
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return Pair(model, AutoNormal(model), (torch.arange(20) % 4, torch.randn(20), torch.randn(20)))
