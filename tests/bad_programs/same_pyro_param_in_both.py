"""Model and guide are modules with a PyroParam of one name: Pyro would use one tensor for both."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from tests.catalogue import Expected, Pair

EXPECTED = Expected("parameter-collision", names="'scale'", remedy="name")


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, self.scale), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.1), constraint=constraints.positive)

    def forward(self, x):
        pyro.sample("mean", dist.Normal(0.0, self.scale))


def program() -> Pair:
    return Pair(Model(), Guide(), torch.randn(20))
