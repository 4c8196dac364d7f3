"""Guides of another family on the same support: LogNormal for Gamma, a squashed Normal for Beta."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        angle = pyro.sample("angle", dist.Uniform(-1.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(rate * share + angle, sigma), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(4))
        scale = pyro.param("scale", torch.full((4,), 0.3), constraint=constraints.positive)
        pyro.sample("rate", dist.LogNormal(loc[0], scale[0]))
        squashed = dist.TransformedDistribution(
            dist.Normal(loc[1], scale[1]), [T.SigmoidTransform()]
        )
        pyro.sample("share", squashed)
        pyro.sample("sigma", dist.LogNormal(loc[2], scale[2]))
        affine = [T.SigmoidTransform(), T.AffineTransform(-1.0, 4.0)]
        pyro.sample("angle", dist.TransformedDistribution(dist.Normal(loc[3], scale[3]), affine))

    return Pair(model, guide, torch.rand(20))
