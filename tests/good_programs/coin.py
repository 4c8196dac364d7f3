"""The coin of Pyro's introduction, with flips in a Python loop."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from tests.catalogue import Pair


def program() -> Pair:
    def model(flips):
        fairness = pyro.sample("latent_fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        for i in range(len(flips)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=flips[i])

    def guide(flips):
        a = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
        b = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("latent_fairness", dist.Beta(a, b))

    return Pair(model, guide, torch.tensor([1.0] * 6 + [0.0] * 4))
