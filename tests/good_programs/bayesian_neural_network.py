"""A network whose every weight has a prior, with AutoNormal."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.catalogue import Pair


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.first, self.second = PyroModule[nn.Linear](1, 5), PyroModule[nn.Linear](5, 1)
        for layer in (self.first, self.second):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y):
        mean = self.second(torch.tanh(self.first(x))).squeeze(-1)
        sigma = pyro.sample("sigma", dist.Gamma(0.5, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def program() -> Pair:
    model = Network()
    return Pair(model, AutoNormal(model), (torch.randn(20, 1), torch.randn(20)))
