"""The variational autoencoder of Kingma and Welling (1312.6114), on binary images.

    amortized fit examples/vae.py --set latent_dim=2 --out runs/vae
    amortized fit examples/vae.py --set data=fashion-mnist --set hidden=400 --epochs 20
    python examples/vae.py

z ~ N(0, I), and each pixel of x is a Bernoulli whose logit is a network of z; the guide is a
Gaussian whose mean and scale are a network of x. Data: see `data.py` beside this file.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from data import load
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

import amortized as am


class Model(PyroModule):
    """p(x, z): a Gaussian code, decoded to the logits of the pixels."""

    def __init__(self, pixels: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, pixels)
        )

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(PyroModule):
    """q(z | x): the encoder's Gaussian."""

    def __init__(self, pixels: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent_dim)
        )

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``."""
        loc, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def program(
    latent_dim: int = 8,
    hidden: int = 200,
    data: str = "digits",
    path: str = "",
    download: bool = False,
) -> am.Program:
    """The pair and its data; every argument is an option of the command line (``--set``)."""
    images = load(data, path, download)
    pixels = images.train.shape[1]
    return am.Program(
        model=Model(pixels, latent_dim, hidden),
        guide=Guide(pixels, latent_dim, hidden),
        train=images.train,
        val=images.val,
        test=images.test,
        image_shape=images.shape,
        labels=images.labels,
    )


def main(max_epochs: int = 100) -> None:
    """What ``amortized fit examples/vae.py --kl analytic`` does, in five lines."""
    pyro.set_rng_seed(0)
    p = program()
    svi = am.SVI(p.model, p.guide, am.VariationalLoss(am.ELBO(kl="analytic")), lr=1e-3)
    stopping = am.EarlyStopping(patience=10)
    print(svi.fit(p.train, p.val, max_epochs=max_epochs, callbacks=[stopping]))
    print(svi.evaluate(p.test, num_particles=100))


if __name__ == "__main__":
    main()
