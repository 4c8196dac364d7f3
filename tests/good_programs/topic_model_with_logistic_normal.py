"""ProdLDA: a logistic normal for the weights, batch norm on the decoder, counts as one event."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tests.catalogue import Pair


class ProdLDA(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(9, 8), nn.Softplus(), nn.Dropout(0.2), nn.Linear(8, 6)
        )
        self.beta, self.norm = nn.Linear(3, 9, bias=False), nn.BatchNorm1d(9, affine=False)

    def model(self, docs):
        pyro.module("beta", self.beta)
        with pyro.plate("documents", docs.shape[0]):
            prior = dist.Normal(docs.new_zeros(docs.shape[0], 3), 1.0).to_event(1)
            theta = torch.softmax(pyro.sample("logtheta", prior), -1)
            probs = torch.softmax(self.norm(self.beta(theta)), -1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, probs, validate_args=False), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, log_scale = self.encoder(docs).chunk(2, -1)
            pyro.sample("logtheta", dist.Normal(loc, log_scale.exp()).to_event(1))


def program() -> Pair:
    net = ProdLDA()
    return Pair(net.model, net.guide, torch.poisson(torch.full((12, 9), 2.0)))
