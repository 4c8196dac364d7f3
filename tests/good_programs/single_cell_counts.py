"""Counts with a latent size of each cell and a batch label (Lopez et al., scVI)."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.log_theta = nn.Linear(4, 10), nn.Parameter(torch.zeros(10))

    def forward(self, x, batch):
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(0, torch.ones(2)).to_event(1))
            size = pyro.sample("size", dist.LogNormal(3.0, 1.0))
            kind = nn.functional.one_hot(batch, 2).float().expand(*z.shape[:-1], 2)
            share = self.decoder(torch.cat([z, kind], -1)).softmax(-1)
            logits = (share * size.unsqueeze(-1) + 1e-6).log() - self.log_theta
            law = dist.NegativeBinomial(self.log_theta.exp(), logits=logits)
            pyro.sample("x", law.to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.size = nn.Linear(10, 4), nn.Linear(10, 2)

    def forward(self, x, batch):
        with pyro.plate("cells", len(x)):
            loc, scale = self.code(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))
            loc, scale = self.size(x.log1p()).unbind(-1)
            pyro.sample("size", dist.LogNormal(loc, nn.functional.softplus(scale)))


def program() -> Pair:
    counts = torch.poisson(torch.full((24, 10), 4.0))
    return Pair(Model(), Guide(), (counts, torch.arange(24) % 2))
