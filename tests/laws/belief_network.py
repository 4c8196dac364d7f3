"""A small sigmoid belief network on five images, whose bound is known by enumeration.

No random numbers: decoder and encoder are waves, the data are digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from sklearn.datasets import load_digits
from torch import Tensor

import amortized as am
from amortized.estimators.base import Estimator


@final
class Network:
    """Four bits above 64 pixels, five images; ELBO and its gradients known by enumeration."""

    elbo = -28.872501694
    norms: Mapping[str, float] = {
        "V": 1.585799991,
        "W": 1.311063722,
        "a": 0.012881354,
        "b": 1.217735395,
    }
    some_of_v = (0.249304068, -0.056966528, 0.013076508)

    def __init__(self) -> None:
        images = torch.as_tensor(load_digits().data / 16 >= 0.5, dtype=torch.float64)
        d, j = torch.arange(64.0).unsqueeze(-1), torch.arange(4.0)
        means = images.mean(0).clamp(0.05, 0.95)
        self.images, self.centred = images[:5], images[:5] - means
        self.start = {
            "V": 0.15 * torch.cos(0.3 * d + 0.9 * j).T,
            "W": 0.8 * torch.sin(0.7 * d + 1.3 * j),
            "a": torch.zeros(4),
            "b": torch.logit(means),
        }

    def logits(self) -> Tensor:
        """Of the guide, a row for each image."""
        return self.centred @ pyro.param("V", self.start["V"]).T

    def model(self, images: Tensor, weights: Tensor, logits: Tensor | None = None) -> None:
        """Images in a plate, each term with a weight; the logits are the guide's."""
        a, b, w = (pyro.param(name, self.start[name]) for name in "abW")
        with pyro.plate("data", len(images)), poutine.scale(scale=weights):
            z = pyro.sample("z", dist.Bernoulli(logits=a).expand([len(images), 4]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=b + z @ w.T).to_event(1), obs=images)

    def guide(self, images: Tensor, weights: Tensor, logits: Tensor | None = None) -> None:
        """The encoder, or given logits, for several repetitions of the five images."""
        if logits is None:
            logits = self.logits().repeat(len(images) // 5, 1)
        with pyro.plate("data", len(images)), poutine.scale(scale=weights):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def row_gradients(network: Network, estimator: Estimator, count: int) -> Tensor:
    """Gradients of the bound in the logits of each image, ``[count, images * bits]``."""
    logits = network.logits().detach().repeat(count, 1).requires_grad_()
    args = (network.images.repeat(count, 1), torch.ones(5 * count), logits)
    loss = am.VariationalLoss(estimators={"z": estimator})
    (-loss.estimate(network.model, network.guide, args, {}).loss).backward()
    return logits.grad.reshape(count, 20)
