"""Missing entries are masked in the likelihood, and the encoder reads their NaN all the same."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "nan-behind-mask",
    site="x",
    names=("row", "13"),
    remedy="nan_to_num",
    also=("invalid-parameter",),
)


def program() -> Pair:
    encoder = nn.Linear(5, 1)

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("columns", 5, dim=-1), poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(encoder(x), 1.0))

    x = torch.randn(20, 5)
    x[13, 2] = torch.nan
    return Pair(model, guide, x)
