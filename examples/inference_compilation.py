"""Inference compilation (Le, Baydin & Wood 2017, 1610.09900): a guide that inverts a simulator.

    python examples/inference_compilation.py
    amortized fit examples/inference_compilation.py --objective forward_kl --epochs 60

A point source at z on a square shines on 16 detectors; it is *lit* or not. Each detector counts
photons, x ~ Poisson(background + lit * power / (distance^2 + 0.05)). The simulator has nothing to
learn. The guide sees counts, and is trained on simulations alone: `ForwardKL` charges -log q of the
z and lit that made them. Afterwards one pass answers any observation, and importance weights
against the model say how good the answer is.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

import amortized as am

DETECTORS = torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 4)] * 2)


def model(x: torch.Tensor) -> None:
    """p(lit, z, x): counts ``[B, 16]``."""
    with pyro.plate("data", len(x)):
        lit = pyro.sample("lit", dist.Bernoulli(x.new_full((), 0.7)))
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        distance = (z.unsqueeze(-2) - DETECTORS.to(x)).square().sum(-1)
        rate = 0.5 + 4.0 * lit.unsqueeze(-1) / (distance + 0.05)
        pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


class Guide(PyroModule):
    """q(lit | x) q(z | lit, x)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(len(DETECTORS), hidden), nn.Tanh())
        self.lit = nn.Linear(hidden, 1)
        self.place = nn.Sequential(nn.Linear(hidden + 1, hidden), nn.Tanh(), nn.Linear(hidden, 4))

    def forward(self, x: torch.Tensor) -> None:
        """Counts ``[B, 16]``."""
        seen = self.body(torch.log1p(x))
        with pyro.plate("data", len(x)):
            lit = pyro.sample("lit", dist.Bernoulli(logits=self.lit(seen).squeeze(-1)))
            given = lit.unsqueeze(-1)
            seen = seen.expand(*given.shape[:-1], -1)
            loc, scale = self.place(torch.cat([seen, given], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1))


def simulated(count: int) -> torch.Tensor:
    """Counts of so many draws from the model, for held-out questions."""
    trace = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(
        torch.zeros(count, len(DETECTORS))
    )
    return trace.nodes["x"]["value"]


def program(hidden: int = 64, rows: int = 4096) -> am.Program:
    """The pair; training data count for their shape alone, so they are zeros."""
    test = simulated(1000)
    return am.Program(
        model=model, guide=Guide(hidden), train=torch.zeros(rows, len(DETECTORS)), test=test
    )


def main(max_epochs: int = 60) -> None:
    """Train on simulations, then ask about counts that it has not seen."""
    pyro.set_rng_seed(0)
    p = program()
    svi = am.SVI(p.model, p.guide, am.VariationalLoss(am.ForwardKL()), lr=3e-3)
    print(svi.fit(p.train, max_epochs=max_epochs, batch_size=256, seed=0))
    found = svi.evaluate(p.test, num_particles=[1, 10, 100], seed=0)
    share = found["ess"] / found["num_particles"]
    print(found)
    print(f"effective sample size: {share:.0%} of the draws")


if __name__ == "__main__":
    main()
