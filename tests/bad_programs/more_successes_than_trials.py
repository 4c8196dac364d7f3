"""Two columns were exchanged: successes exceed the number of trials."""

import pyro
import pyro.distributions as dist
import torch

from tests.catalogue import Expected, Pair

EXPECTED = Expected("data-support", site="hits", names=("Binomial", "row"), remedy="total_count")


def program() -> Pair:
    def model(hits, trials):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(hits)):
            pyro.sample("hits", dist.Binomial(trials, p), obs=hits)

    def guide(hits, trials):
        a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("p", dist.Beta(a, 2.0))

    return Pair(model, guide, (torch.full((20,), 9.0), torch.arange(20.0)))
