"""NaN in one tensor of a dict, in two rows."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-nan", site="price", names=("2 rows", "4", "19"), remedy="obs_mask")


def program() -> Pair:
    def model(size, rooms, price):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("houses", len(size)):
            pyro.sample("price", dist.Normal(a * size + b * rooms, 1.0), obs=price)

    price = torch.randn(20)
    price[4] = price[19] = torch.nan
    batch = {"size": torch.randn(20), "rooms": torch.randn(20), "price": price}
    guide = AutoNormal(model)
    guide(**{**batch, "price": torch.zeros(20)})
    return Pair(model, guide, batch)
