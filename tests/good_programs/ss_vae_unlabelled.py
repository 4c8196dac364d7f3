"""The semi-supervised auto-encoder on a batch without labels: the class is enumerated."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


class SSVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_y, self.encoder_z = nn.Linear(8, 3), nn.Linear(8 + 3, 4)
        self.decoder = nn.Linear(2 + 3, 8)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", len(xs)):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(2), 1.0).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(3) / 3), obs=ys)
            left = torch.broadcast_shapes(zs.shape[:-1], ys.shape[:-1])
            joined = torch.cat([zs.expand(*left, 2), ys.expand(*left, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(joined)).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", len(xs)):
            if ys is None:
                law = dist.OneHotCategorical(logits=self.encoder_y(xs))
                ys = pyro.sample("y", law, infer={"enumerate": "parallel"})
            joined = torch.cat([xs.expand(*ys.shape[:-1], 8), ys], -1)
            loc, log_scale = self.encoder_z(joined).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def program() -> Pair:
    net = SSVAE()
    xs = torch.bernoulli(torch.full((20, 8), 0.5))
    return Pair(net.model, net.guide, xs, am.VariationalLoss(am.ELBO()))
