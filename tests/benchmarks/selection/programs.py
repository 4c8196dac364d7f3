"""The programs: small, with discrete sites of all kinds, on digits where they need images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import amortized as am

# how many of the 1,797 digits are trained on
_TRAIN = 1500
_SCORES = ("score_function", "moving_average", "leave_one_out")


@dataclass(frozen=True)
class Problem:
    """A program, the estimators that its discrete sites get by turns, and how it is trained.

    The first estimator is the plain score function, which is Pyro's own default. ``steps`` end
    about where the validation ELBO does not rise any more: what comes after would make a pilot a
    smaller share of the whole. ``longer`` says how many times as long a step of an estimator takes
    where that is a multiple: it has so many times fewer steps, so that all have about as many
    seconds.
    """

    program: Callable[[], am.Program]
    sites: str
    fixed: tuple[str, ...]
    steps: int
    lr: float = 3e-3
    longer: Mapping[str, int] = field(default_factory=dict)


def digits() -> tuple[Tensor, Tensor]:
    """Binary images of 64 pixels, for training and validation."""
    images = (torch.tensor(load_digits().data, dtype=torch.float32) > 8).float()
    return images[:_TRAIN], images[_TRAIN:]


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Side by side, also where one has a dim more."""
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat([left.expand(*shape, -1), right.expand(*shape, -1)], -1)


def toy() -> am.Program:
    """One Bernoulli under a quadratic cost."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(6 * (b - 0.45) ** 2, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(-1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logit.expand(len(x))))

    return am.Program(model, guide, torch.full((4,), 1.8))


def belief_network(layers: int) -> am.Program:
    """Bits of bits: the images from 32 of them, or those from 32 others."""
    up = nn.ModuleList([nn.Linear(64 if layer == 0 else 32, 32) for layer in range(layers)])
    down = nn.ModuleList([nn.Linear(32, 64 if layer == 0 else 32) for layer in range(layers)])
    top = torch.zeros(32)

    def model(x: Tensor) -> None:
        pyro.module("down", down)
        with pyro.plate("data", len(x)):
            logits = pyro.param("top", top.clone())
            for layer in reversed(range(layers)):
                bits = pyro.sample(f"z{layer}", dist.Bernoulli(logits=logits).to_event(1))
                logits = down[layer](2 * bits - 1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("up", up)
        below = x
        with pyro.plate("data", len(x)):
            for layer in range(layers):
                logits = up[layer](2 * below - 1)
                below = pyro.sample(f"z{layer}", dist.Bernoulli(logits=logits).to_event(1))

    return am.Program(model, guide, *digits())


def mixture_vae() -> am.Program:
    """A class of ten and a code of four numbers."""
    net = nn.ModuleDict(
        {
            "hidden": nn.Linear(64, 64),
            "classes": nn.Linear(64, 10),
            "code": nn.Linear(74, 8),
            "decode": nn.Linear(14, 64),
            "image": nn.Linear(64, 64),
        }
    )

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(torch.full((10,), 0.1)))
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
            logits = net["image"](net["decode"](joined(z, c)).relu())
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            hidden = net["hidden"](x).relu()
            c = pyro.sample("c", dist.OneHotCategorical(logits=net["classes"](hidden)))
            loc, scale = net["code"](joined(hidden, c)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return am.Program(model, guide, *digits())


def poisson_gamma() -> am.Program:
    """A rate and a count of it, seen through noise."""
    net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3))
    count = torch.distributions.Poisson(torch.distributions.Gamma(3.0, 0.5).sample((1200,)))
    x = count.sample() + 0.5 * torch.randn(1200)

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 0.5))
            k = pyro.sample("k", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(k, scale), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        shape, inverse, level = net(x.unsqueeze(-1) / 5).unbind(-1)
        with pyro.plate("data", len(x)):
            shape, inverse = (nn.functional.softplus(v) + 0.1 for v in (shape + 2, inverse))
            pyro.sample("rate", dist.Gamma(shape, inverse))
            pyro.sample("k", dist.Poisson(nn.functional.softplus(level + 2)))

    return am.Program(model, guide, x[:1000], x[1000:])


def chain() -> am.Program:
    """A class, a number that depends on it, and a bit that depends on both."""
    net = nn.ModuleDict(
        {
            "c": nn.Linear(64, 4),
            "z": nn.Linear(68, 4),
            "b": nn.Linear(70, 8),
            "x": nn.Linear(14, 64),
        }
    )

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c0", dist.OneHotCategorical(torch.full((4,), 0.25)))
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            b = pyro.sample("c1", dist.Bernoulli(0.5).expand([8]).to_event(1))
            logits = net["x"](joined(joined(c, z), b))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c0", dist.OneHotCategorical(logits=net["c"](x)))
            loc, scale = net["z"](joined(x, c)).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            logits = net["b"](joined(joined(x, c), z))
            pyro.sample("c1", dist.Bernoulli(logits=logits).to_event(1))

    return am.Program(model, guide, *digits())


def large_categorical() -> am.Program:
    """One of 200 prototypes."""
    encode = nn.Linear(64, 200)
    prototypes = 0.5 * torch.randn(200, 64)

    def model(x: Tensor) -> None:
        logits = pyro.param("prototypes", prototypes.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(200)))
            pyro.sample("x", dist.Bernoulli(logits=logits[c]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=encode(x)))

    return am.Program(model, guide, *digits())


_FINITE = (*_SCORES, "enumerate", "sum_and_sample", "unordered_set")
PROBLEMS: Mapping[str, Problem] = {
    "toy": Problem(toy, "b", (*_SCORES, "enumerate", "disarm"), 3000, lr=1e-2),
    "SBN, 1 layer": Problem(lambda: belief_network(1), "z*", (*_SCORES, "disarm", "muprop"), 5000),
    "SBN, 2 layers": Problem(lambda: belief_network(2), "z*", (*_SCORES, "disarm", "muprop"), 5000),
    "mixture VAE": Problem(mixture_vae, "c", (*_FINITE, "disarm"), 4000),
    "Poisson and Gamma": Problem(poisson_gamma, "k", (*_SCORES, "measure_valued"), 6000),
    "chain": Problem(chain, "c*", (*_SCORES, "disarm"), 8000),
    "large categorical": Problem(
        large_categorical,
        "c",
        _FINITE,
        24_000,
        longer={"sum_and_sample": 3, "unordered_set": 5, "enumerate": 16},
    ),
}
