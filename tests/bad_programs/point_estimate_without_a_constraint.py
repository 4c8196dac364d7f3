"""A Delta guide at an unconstrained parameter, for a site that must be positive."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "support-mismatch", site="sigma", remedy="constraint", also=("invalid-parameter",)
)


def program() -> Pair:
    def model(x):
        with pyro.plate("columns", x.shape[-1], dim=-1):
            sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
            with pyro.plate("rows", len(x), dim=-2):
                pyro.sample("x", dist.Normal(0.0, sigma), obs=x)

    def guide(x):
        point = pyro.param("sigma_point", torch.tensor([0.3, -0.1, 1.1]))
        with pyro.plate("columns", x.shape[-1], dim=-1):
            pyro.sample("sigma", dist.Delta(point))

    return Pair(model, guide, torch.randn(20, 3))
