"""Two PyroModules whose layers have the same names, and one PyroParam each under a module name."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from tests.catalogue import Pair


class Model(PyroModule):
    def __init__(self):
        super().__init__("model")
        self.net = nn.Linear(2, 5)
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.net = nn.Linear(5, 2)
        self.scale = PyroParam(torch.tensor(0.1), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), self.scale).to_event(1))


def program() -> Pair:
    return Pair(Model(), Guide(), torch.randn(20, 5))
