"""EasyGuide over sites in plates of their own: it makes plates without a size for them."""

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from torch.nn.functional import softplus

from tests.catalogue import Pair


class Guide(EasyGuide):
    def guide(self, x):
        weights = self.group(match="w_.*")
        loc = pyro.param("w_loc", torch.zeros(weights.event_shape))
        scale = softplus(pyro.param("w_scale", torch.zeros(weights.event_shape)))
        weights.sample("ws", dist.Normal(loc, scale).to_event(1))
        local = self.group(match="z")
        shape = x.shape[:1] + local.event_shape
        with self.plate("data", len(x)):
            z_loc = pyro.param("z_loc", torch.zeros(shape))
            local.sample("zs", dist.Normal(z_loc, 1.0).to_event(1))


def program() -> Pair:
    def model(x):
        with pyro.plate("top", 3):
            w_top = pyro.sample("w_top", dist.Normal(0.0, 1.0))
        with pyro.plate("bottom", 3):
            w_bottom = pyro.sample("w_bottom", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * w_top + w_bottom, 1.0).to_event(1), obs=x)

    return Pair(model, Guide(model), torch.randn(20, 3))
