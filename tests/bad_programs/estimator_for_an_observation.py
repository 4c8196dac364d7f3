"""The mapping of estimators names the observed site; only latents have one."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected(
    "estimator-key", names=("'flips'", "observe"), remedy="latent", severity="warning"
)


def program() -> Pair:
    def model(flips):
        z = pyro.sample("fairness", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(flips)):
            pyro.sample("flips", dist.Bernoulli(z), obs=flips)

    def guide(flips):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("fairness", dist.Beta(a, 2.0))

    loss = am.VariationalLoss(estimators={"flips": am.Enumerate()})
    return Pair(model, guide, torch.tensor([1.0, 0.0, 1.0]), loss)
