"""The VAE of ``examples/vae.py`` on digits as a plain Pyro script: ``python FILE EPOCHS [off]``.

A DataLoader, `pyro.infer.SVI`, a validation loss after each epoch, and the test ELBO at the end.
With ``off`` Pyro does not validate, which is faster than Pyro as it comes.
"""

from __future__ import annotations

import sys
from typing import Any

import pyro
import pyro.distributions as dist
from digits import digits
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

PIXELS, HIDDEN, LATENT, BATCH = 64, 200, 8, 128
encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, scale = encoder(x).chunk(2, -1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


def main(epochs: int, validate: bool) -> None:
    pyro.set_rng_seed(0)
    pyro.enable_validation(validate)
    train, val, test = digits()
    svi: Any = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    loader = DataLoader(TensorDataset(train), batch_size=BATCH, shuffle=True)
    val_loader = DataLoader(TensorDataset(val), batch_size=BATCH)
    history = []
    for _ in range(epochs):
        loss = sum(svi.step(x) for (x,) in loader) / len(train)
        val_loss = sum(svi.evaluate_loss(x) for (x,) in val_loader) / len(val)
        history.append((loss, val_loss))
    print(f"test ELBO {-svi.evaluate_loss(test) / len(test):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), "off" not in sys.argv)
