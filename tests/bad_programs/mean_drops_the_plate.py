"""``z.mean(-1)`` over an enumerated site drops its plate dim: the copies slide onto it."""

import pyro
import pyro.distributions as dist
import torch

import amortized as am
from tests.catalogue import Expected, Pair

EXPECTED = Expected("erased-axes", site="total", remedy="keepdim", also=("undeclared-batch-dim",))


def program() -> Pair:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal(z.mean(-1), 0.1), obs=torch.tensor(0.5))

    def guide(x):
        logits = pyro.param("logits", torch.zeros(20))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    loss = am.VariationalLoss(estimators={"z": am.ScoreFunction(am.LeaveOneOut(), num_samples=3)})
    return Pair(model, guide, torch.randn(20), loss)
