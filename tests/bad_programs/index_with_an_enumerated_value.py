"""``table[:, k]`` with an enumerated ``k``: the copies arrive in the middle of the shape."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "erased-axes", site="x", remedy="left", also=("undeclared-batch-dim", "program-raises")
)


def program() -> Pair:
    def model(x):
        table = pyro.param("table", torch.randn(4, 3))
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        loc = table[:, k].reshape(4, -1).mean(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, torch.ones(4)).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        pyro.sample("k", dist.Categorical(logits=logits))

    return Pair(
        model, guide, torch.randn(20, 4), am.VariationalLoss(estimators={"k": am.Enumerate()})
    )
