"""The pairs of programs that are timed, each a model and a guide that announce their parameters."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """A file of ``examples/`` as a module; its neighbours are found as when it is run."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class MixtureModel(PyroModule):
    """A cluster, a code around its mean, and Bernoulli pixels."""

    def __init__(self, pixels: int, hidden: int, latent: int, clusters: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(clusters))
        self.means = nn.Parameter(torch.randn(clusters, latent))
        self.decoder = network(latent, hidden, pixels)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.weights))
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class MixtureGuide(PyroModule):
    """q(c | x) q(z | x, c), with c marked for enumeration as Pyro has it."""

    def __init__(self, pixels: int, hidden: int, latent: int, clusters: int) -> None:
        super().__init__()
        self.encoder = network(pixels, hidden, 2 * latent)
        self.cluster = nn.Linear(pixels, clusters)
        self.shift = nn.Embedding(clusters, 2 * latent)

    def forward(self, x):
        code = self.encoder(x)
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.cluster(x))
            c = pyro.sample("c", q, infer={"enumerate": "parallel"})
            loc, scale = (code + self.shift(c)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


class BernoulliModel(PyroModule):
    """A sigmoid belief network with one layer."""

    def __init__(self, pixels: int, units: int) -> None:
        super().__init__()
        self.top, self.out = nn.Parameter(torch.zeros(units)), nn.Linear(units, pixels)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=self.top).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(b)).to_event(1), obs=x)


class BernoulliGuide(PyroModule):
    """A linear map of the pixels."""

    def __init__(self, pixels: int, units: int) -> None:
        super().__init__()
        self.up = nn.Linear(pixels, units)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=self.up(x)).to_event(1))


class BinaryModel(PyroModule):
    """A sigmoid belief network with two layers."""

    def __init__(self, pixels: int, first: int, second: int) -> None:
        super().__init__()
        self.top = nn.Parameter(torch.zeros(second))
        self.down, self.out = nn.Linear(second, first), nn.Linear(first, pixels)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            b2 = pyro.sample("b2", dist.Bernoulli(logits=self.top).to_event(1))
            b1 = pyro.sample("b1", dist.Bernoulli(logits=self.down(b2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(b1)).to_event(1), obs=x)


class BinaryGuide(PyroModule):
    """Bottom up; TraceGraph_ELBO reads its baseline here, and ours reads none of it."""

    def __init__(self, pixels: int, first: int, second: int) -> None:
        super().__init__()
        self.up, self.on = nn.Linear(pixels, first), nn.Linear(first, second)

    def forward(self, x):
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            q1 = dist.Bernoulli(logits=self.up(x)).to_event(1)
            b1 = pyro.sample("b1", q1, infer=infer)
            q2 = dist.Bernoulli(logits=self.on(b1)).to_event(1)
            pyro.sample("b2", q2, infer=infer)


class ChainModel(PyroModule):
    """A random walk observed with noise, one sample statement a time step."""

    def __init__(self, length: int, law: Callable[[Any], Any]) -> None:
        super().__init__()
        self.length, self.law = length, law
        self.drift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        z = torch.zeros(())
        with pyro.plate("data", x.shape[1]):
            for t in range(self.length):
                z = pyro.sample(f"z{t}", self.law(0.9 * z + self.drift))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


class ChainGuide(PyroModule):
    """Each step from its own observation."""

    def __init__(self, length: int, law: Callable[[Any], Any]) -> None:
        super().__init__()
        self.length, self.law = length, law
        self.loc = nn.Parameter(torch.zeros(length))

    def forward(self, x):
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", x.shape[1]):
            for t in range(self.length):
                pyro.sample(f"z{t}", self.law(self.loc[t] + 0.1 * x[t]), infer=infer)


def normal(loc: Any) -> dist.Normal:
    return dist.Normal(loc, 1.0)


def bernoulli(logits: Any) -> dist.Bernoulli:
    return dist.Bernoulli(logits=logits)
