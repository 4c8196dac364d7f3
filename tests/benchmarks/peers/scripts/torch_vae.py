"""The VAE of ``examples/vae.py`` on digits as a plain PyTorch script: ``python FILE EPOCHS``.

A DataLoader, fused Adam, a validation loss after each epoch, and the test ELBO at the end.
"""

from __future__ import annotations

import sys

import torch
from digits import digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.utils.data import DataLoader, TensorDataset

PIXELS, HIDDEN, LATENT, BATCH = 64, 200, 8, 128
encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))


def loss_of(x):
    loc, raw = encoder(x).chunk(2, -1)
    scale = softplus(raw)
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    missing = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    return missing + (0.5 * (z * z - noise * noise) - scale.log()).sum()


def main(epochs: int) -> None:
    torch.manual_seed(0)
    train, val, test = digits()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    loader = DataLoader(TensorDataset(train), batch_size=BATCH, shuffle=True)
    val_loader = DataLoader(TensorDataset(val), batch_size=BATCH)
    history = []
    for _ in range(epochs):
        total = 0.0
        for (x,) in loader:
            optimizer.zero_grad()
            loss = loss_of(x) / len(x)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        with torch.no_grad():
            val_loss = sum(loss_of(x).item() for (x,) in val_loader) / len(val)
        history.append((total / len(train), val_loss))
    with torch.no_grad():
        print(f"test ELBO {-loss_of(test).item() / len(test):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
