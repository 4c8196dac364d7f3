"""A law of ``[5, 5]`` where the plate stands for rows of ``[5]``: one-hot labels in a square."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "broadcast-observation",
    site="y",
    names="(5, 5)",
    remedy="argmax",
    also=("undeclared-batch-dim", "event-shape-mismatch"),
)


def program() -> Pair:
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 5), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ weight), obs=y)

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(2, 5))
        pyro.sample("weight", dist.Normal(loc, 0.1).to_event(2))

    return Pair(model, guide, (torch.randn(5, 2), torch.eye(5).long()))
