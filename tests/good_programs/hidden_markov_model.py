"""A hidden Markov model with states sampled in the guide, one site for each time."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import amortized as am
from tests.catalogue import Pair


def program() -> Pair:
    encoder = nn.GRU(1, 3, batch_first=True, bidirectional=True)
    to_logits = nn.Linear(6 + 3, 3)

    def model(x):
        table = pyro.param("transition", torch.eye(3))
        locs = pyro.param("locs", torch.linspace(-1.0, 1.0, 3))
        with pyro.plate("sequences", len(x)):
            z = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=table[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("to_logits", to_logits)
        hidden = encoder(x.unsqueeze(-1))[0]
        with pyro.plate("sequences", len(x)):
            z = torch.zeros(len(x), dtype=torch.long)
            for t in pyro.markov(range(x.shape[1])):
                before = torch.nn.functional.one_hot(z, 3).float()
                logits = to_logits(
                    torch.cat([hidden[:, t].expand(*before.shape[:-1], 6), before], -1)
                )
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))

    loss = am.VariationalLoss(am.ELBO(num_particles=3), {"z_*": am.ScoreFunction(am.LeaveOneOut())})
    return Pair(model, guide, torch.randn(10, 4), loss)
