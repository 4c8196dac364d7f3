"""A GRU reads a sequence that depends on an enumerated site, so it has one dim too many."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("module-left-dims", names=("GRU", "'k'"), remedy="am.Fold")


def program() -> Pair:
    rnn = nn.GRU(3, 1, batch_first=True)

    def model(x):
        pyro.module("rnn", rnn)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3))
            steps = k.unsqueeze(-2).expand(*k.shape[:-1], 4, 3)
            loc = rnn(steps)[0].squeeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(logits=logits))

    loss = am.VariationalLoss(estimators={"k": am.Enumerate()})
    return Pair(model, guide, torch.randn(20, 4), loss)
