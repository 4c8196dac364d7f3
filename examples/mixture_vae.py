"""A mixture VAE: a cluster c and a Gaussian code z for each image, two kinds of latent at once.

    amortized fit examples/mixture_vae.py --out runs/mixture
    amortized fit examples/mixture_vae.py --estimator c=leave_one_out
    amortized fit examples/mixture_vae.py --estimator c=score_function --set clusters=20

c ~ Categorical, z | c ~ N(mean_c, scale_c), and x | z is Bernoulli with a network's logits; the
guide is q(c | x) q(z | x, c). By default c is enumerated: the bound sums over the clusters exactly.
The command line can put a score function there instead, and nothing else changes.
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
    """p(x, z, c)."""

    def __init__(self, pixels: int, clusters: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(clusters))
        self.means = nn.Parameter(torch.randn(clusters, latent_dim))
        self.scales = nn.Parameter(torch.zeros(clusters, latent_dim))
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, pixels)
        )

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``."""
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.weights))
            prior = dist.Normal(self.means[c], softplus(self.scales[c]))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(PyroModule):
    """q(c | x) q(z | x, c)."""

    def __init__(self, pixels: int, clusters: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(pixels, hidden), nn.Tanh())
        self.cluster = nn.Linear(hidden, clusters)
        self.embedding = nn.Embedding(clusters, hidden)
        self.code = nn.Linear(hidden, 2 * latent_dim)

    def forward(self, x: torch.Tensor) -> None:
        """Images ``[B, pixels]``; under enumeration c is ``[clusters, B]``, so c only adds."""
        features = self.features(x)
        with pyro.plate("data", len(x)):
            q_c = dist.Categorical(logits=self.cluster(features))
            c = pyro.sample("c", q_c, infer={"estimator": "enumerate"})
            loc, scale = self.code(torch.tanh(features + self.embedding(c))).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))

    def most_likely(self, x: torch.Tensor) -> torch.Tensor:
        """The cluster of each image, ``[B]``."""
        return self.cluster(self.features(x)).argmax(-1)


def program(
    clusters: int = 10,
    latent_dim: int = 8,
    hidden: int = 200,
    data: str = "digits",
    path: str = "",
    download: bool = False,
) -> am.Program:
    """The pair and its data; every argument is an option of the command line (``--set``)."""
    images = load(data, path, download)
    sizes = (images.train.shape[1], clusters, latent_dim, hidden)
    return am.Program(
        model=Model(*sizes),
        guide=Guide(*sizes),
        train=images.train,
        val=images.val,
        test=images.test,
        image_shape=images.shape,
        labels=images.labels,
    )


def purity(clusters: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images whose label is the commonest one of their cluster."""
    found = clusters.unique()
    best = [labels[clusters == c].bincount().max() for c in found]
    return float(torch.stack(best).sum()) / len(labels)


def main(max_epochs: int = 100) -> None:
    """Fits with c enumerated, and says how well the clusters match labels that nobody showed it."""
    pyro.set_rng_seed(0)
    p = program()
    svi = am.SVI(p.model, p.guide, am.VariationalLoss(), lr=1e-3)
    print(svi.describe(p.train[:128]))
    stopping = am.EarlyStopping(patience=10)
    print(svi.fit(p.train, p.val, max_epochs=max_epochs, callbacks=[stopping]))
    print(svi.evaluate(p.test, num_particles=100))
    print(
        f"cluster purity on the test images: {purity(svi.guide.most_likely(p.test), p.labels):.2f}"
    )


if __name__ == "__main__":
    main()
