"""``infer={"estimator": "reinforce"}`` at a site: no estimator has that name."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("estimator-unsupported", site="z", names="'reinforce'", remedy="score_function")


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            law = dist.Bernoulli(logits=slope * x)
            pyro.sample("z", law, infer={"estimator": "reinforce"})

    return Pair(model, guide, torch.randn(20))
