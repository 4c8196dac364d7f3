"""A sigmoid belief network: layers of 200 bits under binary images, any estimator for each layer.

    amortized fit examples/sigmoid_belief_network.py --out runs/sbn
    amortized fit examples/sigmoid_belief_network.py --set layers=2 --estimator 'b*=rebar'
    amortized fit examples/sigmoid_belief_network.py --set data=binarized-mnist --set path=FILE

The benchmark of discrete estimators (Mnih & Gregor 2014; Tucker et al. 2017; Grathwohl et al.
2018): b2 -> b1 -> x in the model, x -> b1 -> b2 in the guide, all conditionals linear, bits as -1
and 1, images centered. By default each layer gets DisARM.
"""

from __future__ import annotations

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from data import load
from pyro.nn import PyroModule
from torch import nn

import amortized as am


class Model(PyroModule):
    """p(x, b1, ..., bL): the deepest layer has free logits, the others are linear in the next."""

    def __init__(self, mean: torch.Tensor, layers: int, width: int) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(width))
        self.between = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.pixels = nn.Linear(width, len(mean))
        with torch.no_grad():
            self.pixels.bias.copy_(torch.logit(mean.clamp(0.01, 0.99)))

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``."""
        layers = len(self.between) + 1
        with pyro.plate("data", len(x)):
            logits = self.prior.expand(len(x), -1)
            for layer in range(layers, 0, -1):
                b = pyro.sample(f"b{layer}", dist.Bernoulli(logits=logits).to_event(1))
                if layer > 1:
                    logits = self.between[layer - 2](2 * b - 1)
            likelihood = dist.Bernoulli(logits=self.pixels(2 * b - 1))
            pyro.sample("x", likelihood.to_event(1), obs=x)


class Guide(PyroModule):
    """q(b1 | x) q(b2 | b1) ..."""

    center: torch.Tensor

    def __init__(self, mean: torch.Tensor, layers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("center", 2 * mean - 1)
        sizes = [len(mean)] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``; layers ``[copies..., B, width]``."""
        below = 2 * x - 1 - self.center
        with pyro.plate("data", len(x)):
            for number, layer in enumerate(self.layers, start=1):
                law = dist.Bernoulli(logits=layer(below)).to_event(1)
                b = pyro.sample(f"b{number}", law, infer={"estimator": "disarm"})
                below = 2 * b - 1


def program(
    layers: int = 1,
    width: int = 200,
    data: str = "digits",
    path: str = "",
    download: bool = False,
) -> am.Program:
    """The pair and its data; every argument is an option of the command line (``--set``)."""
    if layers < 1:
        raise am.UsageError(f"layers={layers}: expected at least 1")
    images = load(data, path, download)
    mean = images.train.mean(0)
    return am.Program(
        model=Model(mean, layers, width),
        guide=Guide(mean, layers, width),
        train=images.train,
        val=images.val,
        test=images.test,
        image_shape=images.shape,
        labels=images.labels,
    )


def main(max_epochs: int = 100) -> None:
    """Fits one layer by DisARM and by the score function, and compares held-out bounds."""
    for estimator in ("disarm", "leave_one_out", "moving_average"):
        pyro.set_rng_seed(0)
        p = program()
        loss = am.VariationalLoss(estimators={"b*": estimator})
        svi = am.SVI(p.model, p.guide, loss, lr=1e-3)
        svi.fit(p.train, p.val, max_epochs=max_epochs, progress=False)
        print(estimator, svi.evaluate(p.test, num_particles=100))


if __name__ == "__main__":
    main()
