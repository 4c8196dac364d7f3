"""``linear(x)`` has shape ``[20, 1]`` and was not squeezed; the targets have shape ``[20]``."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "broadcast-observation",
    site="obs",
    names="(20, 1)",
    remedy="squeeze(-1)",
    also=("undeclared-batch-dim",),
)


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y):
        mean = self.linear(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, 0.1), obs=y)


def program() -> Pair:
    model = Regression()
    return Pair(model, AutoDiagonalNormal(model), (torch.randn(20, 3), torch.randn(20)))
