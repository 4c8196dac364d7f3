"""Counts with many zeros, and a mixture as a likelihood: supports that are computed, not named."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Pair


def program() -> Pair:
    def model(counts, times):
        gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2) / 2), dist.Exponential(1 / scales)
        )
        with pyro.plate("data", len(counts)):
            pyro.sample("counts", dist.ZeroInflatedPoisson(rate, gate=gate), obs=counts)
            pyro.sample("times", mixture, obs=times)

    counts = torch.poisson(torch.full((20,), 3.0)) * (torch.arange(20) % 2)
    return Pair(model, AutoNormal(model), (counts, 0.1 + torch.rand(20)))
