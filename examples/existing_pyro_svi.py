"""An ordinary Pyro script: a mixture of Bernoullis on digits. Only the loss object is ours.

    python examples/existing_pyro_svi.py
    amortized fit examples/existing_pyro_svi.py --estimator c=enumerate --lr 0.01

Parameter store, optimizer, plate and training loop are Pyro's. With ``Trace_ELBO`` in the marked
line the script runs as well, with a noisy gradient for the cluster c of each image; with
``VariationalLoss`` c gets an estimator by name: here all clusters are summed over, exactly.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from data import load
from pyro.infer import SVI
from pyro.optim import Adam
from torch import nn

import amortized as am

CLUSTERS = 20
classifier = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLUSTERS))


def model(x: torch.Tensor) -> None:
    """Images ``[B, 64]`` of black and white pixels."""
    weights = pyro.param("weights", torch.zeros(CLUSTERS))
    prototypes = pyro.param("prototypes", lambda: 0.1 * torch.randn(CLUSTERS, 64))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=weights))
        pyro.sample("x", dist.Bernoulli(logits=prototypes[c]).to_event(1), obs=x)


def guide(x: torch.Tensor) -> None:
    """q(c | x)."""
    pyro.module("classifier", classifier)
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(logits=classifier(x)))


def main(steps: int = 1000) -> None:
    """Trains, and prints the ELBO of images that were held out."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    images = load("digits")
    loss = am.VariationalLoss(estimators={"c": "enumerate"})  # was: loss = pyro.infer.Trace_ELBO()
    svi = SVI(model, guide, Adam({"lr": 0.01}), loss)
    for step in range(1, steps + 1):
        batch = images.train[torch.randint(len(images.train), (128,))]
        nats = svi.step(batch) / len(batch)
        if step % 200 == 0 or step == steps:
            print(f"step {step}: loss {nats:.2f} nats an image")
    test = -svi.evaluate_loss(images.test) / len(images.test)
    print(f"test ELBO {test:.2f} nats an image")


def program() -> am.Program:
    """The same pair for the command line: amortized fit ... --estimator c=enumerate --lr 0.01."""
    images = load("digits")
    return am.Program(
        model, guide, images.train, images.val, images.test, images.shape, images.labels
    )


if __name__ == "__main__":
    main()
