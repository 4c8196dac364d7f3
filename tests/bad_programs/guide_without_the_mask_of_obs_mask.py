"""``obs_mask`` masks the latent part in the model; the guide's unmasked term adds its entropy."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "mask-mismatch", site="y_unobserved", remedy=("mask=~seen", "poutine.mask"), severity="warning"
)


def program() -> Pair:
    def model(x, y, seen):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), obs=y, obs_mask=seen)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, y, seen):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y_unobserved", dist.Bernoulli(logits=slope * x))

    return Pair(model, guide, (torch.randn(20), torch.ones(20), torch.arange(20) < 12))
