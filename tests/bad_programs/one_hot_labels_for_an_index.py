"""One-hot rows where Categorical wants one integer for each datum."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "event-shape-mismatch",
    site="y",
    names=("Categorical", "(20, 3)"),
    remedy="argmax",
    also=("undeclared-batch-dim",),
)


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(2, 3))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(2))

    return Pair(model, guide, (torch.randn(20, 2), torch.eye(3)[torch.arange(20) % 3]))
