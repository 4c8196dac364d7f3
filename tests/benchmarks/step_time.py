"""Eager steps: ``loss_and_grads`` of this package against Pyro's own losses, interleaved.

    python -m tests.benchmarks.step_time [--rounds 15] [--case small] [--validate both]

The same pair of programs, batch and parameters for both; gradients are forgotten before each call.
Milliseconds are medians over rounds of the median call; a ratio below 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from rich.table import Table
from torch import nn
from torch.nn.functional import softplus

import amortized as am
from tests.benchmarks.timing import Arm, interleave, ratio, show, zero


class VAE(PyroModule):
    """Model and guide of a Gaussian code and Bernoulli pixels."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, pixels))
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        loc, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


class Mixture(VAE):
    """A cluster, enumerated in the guide, and a code given the cluster."""

    def __init__(self, pixels: int, hidden: int, latent: int, clusters: int = 10) -> None:
        super().__init__(pixels, hidden, latent)
        self.weights = nn.Parameter(torch.zeros(clusters))
        self.means = nn.Parameter(torch.randn(clusters, latent))
        self.cluster = nn.Linear(pixels, clusters)
        self.shift = nn.Embedding(clusters, 2 * latent)

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.weights))
            z = pyro.sample("z", dist.Normal(self.means[c], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        code = self.encoder(x)
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=self.cluster(x))
            c = pyro.sample("c", q, infer={"enumerate": "parallel"})
            loc, scale = (code + self.shift(c)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))


class Binary(PyroModule):
    """Two layers of Bernoulli latents: a sigmoid belief network and its guide."""

    def __init__(self, pixels: int, first: int, second: int) -> None:
        super().__init__()
        self.top = nn.Parameter(torch.zeros(second))
        self.down, self.out = nn.Linear(second, first), nn.Linear(first, pixels)
        self.infer_first, self.infer_second = nn.Linear(pixels, first), nn.Linear(first, second)

    def model(self, x):
        with pyro.plate("data", len(x)):
            b2 = pyro.sample("b2", dist.Bernoulli(logits=self.top).to_event(1))
            b1 = pyro.sample("b1", dist.Bernoulli(logits=self.down(b2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(b1)).to_event(1), obs=x)

    def guide(self, x):
        infer = {"baseline": {"use_decaying_avg_baseline": True}}  # TraceGraph_ELBO's; ours ignores it
        with pyro.plate("data", len(x)):
            q1 = dist.Bernoulli(logits=self.infer_first(x)).to_event(1)
            b1 = pyro.sample("b1", q1, infer=infer)
            q2 = dist.Bernoulli(logits=self.infer_second(b1)).to_event(1)
            pyro.sample("b2", q2, infer=infer)


class Chain(PyroModule):
    """A random walk observed with noise, one sample statement a time step."""

    def __init__(self, length: int, law: Callable[[Any], Any]) -> None:
        super().__init__()
        self.length, self.law = length, law
        self.drift = nn.Parameter(torch.zeros(()))
        self.loc = nn.Parameter(torch.zeros(length))

    def model(self, x):
        z = torch.zeros(())
        with pyro.plate("data", x.shape[1]):
            for t in range(self.length):
                z = pyro.sample(f"z{t}", self.law(0.9 * z + self.drift))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])

    def guide(self, x):
        with pyro.plate("data", x.shape[1]):
            for t in range(self.length):
                pyro.sample(f"z{t}", self.law(self.loc[t] + 0.1 * x[t]))


@dataclass
class Case:
    """One program, and pairs of (label, our loss, Pyro's loss) to be compared on it."""

    title: str
    module: Any
    batch: torch.Tensor
    pairs: list[tuple[str, am.VariationalLoss, PyroELBO]]


def vae_pairs() -> list[tuple[str, am.VariationalLoss, PyroELBO]]:
    return [
        ("Trace_ELBO", am.VariationalLoss(), Trace_ELBO()),
        ("TraceGraph_ELBO", am.VariationalLoss(), TraceGraph_ELBO()),
        ("TraceMeanField_ELBO", am.VariationalLoss(am.ELBO(kl="analytic")), TraceMeanField_ELBO()),
    ]


def score_pairs() -> list[tuple[str, am.VariationalLoss, PyroELBO]]:
    return [
        ("Trace_ELBO", am.VariationalLoss(estimators=am.ScoreFunction()), Trace_ELBO()),
        ("TraceGraph_ELBO", am.VariationalLoss(estimators="moving_average"), TraceGraph_ELBO()),
    ]


def small() -> Case:
    return Case("VAE 64-64-8, batch 64", VAE(64, 64, 8), torch.rand(64, 64).round(), vae_pairs())


def large() -> Case:
    x = torch.rand(128, 784).round()
    return Case("VAE 784-400-20, batch 128", VAE(784, 400, 20), x, vae_pairs())


def mixture() -> Case:
    pairs = [("TraceEnum_ELBO", am.VariationalLoss(), TraceEnum_ELBO(max_plate_nesting=1))]
    x = torch.rand(64, 64).round()
    return Case("mixture VAE, 10 clusters enumerated, batch 64", Mixture(64, 64, 8), x, pairs)


def binary() -> Case:
    x = torch.rand(64, 64).round()
    return Case("two Bernoulli layers 64-32-16, batch 64", Binary(64, 32, 16), x, score_pairs())


def chain() -> Case:
    module = Chain(100, lambda loc: dist.Normal(loc, 1.0))
    pairs = vae_pairs()
    return Case("100 sequential Normal sites, batch 10", module, torch.randn(100, 10), pairs)


def score_chain() -> Case:
    module = Chain(100, lambda loc: dist.Bernoulli(logits=loc))
    title = "100 sequential Bernoulli sites, batch 10"
    return Case(title, module, torch.randn(100, 10), score_pairs())


def particles() -> Case:
    theirs = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    pairs = [("Trace_ELBO", am.VariationalLoss(am.ELBO(num_particles=10)), theirs)]
    x = torch.rand(64, 64).round()
    return Case("VAE 64-64-8, batch 64, 10 particles", VAE(64, 64, 8), x, pairs)


CASES = {c.__name__: c for c in (small, large, mixture, binary, chain, score_chain, particles)}


def measure(case: Case, validate: bool, rounds: int) -> Iterator[tuple[str, Arm, Arm]]:
    """Ours and Pyro's, for each pair of the case."""
    model, guide, before = case.module.model, case.module.guide, zero(case.module)
    for label, ours, theirs in case.pairs:
        with pyro.get_param_store().scope(), pyro.validation_enabled(validate):
            arms = [
                Arm(name, lambda loss=loss: loss.loss_and_grads(model, guide, case.batch), before)
                for name, loss in (("ours", ours), ("theirs", theirs))
            ]
            interleave(arms, rounds)
        yield label, arms[0], arms[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--validate", choices=("on", "off", "both"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="loss_and_grads, ms a call (median), one thread, seed 0")
    for column in ("program", "against", "validation", "ours", "Pyro", "ratio [95 %]"):
        table.add_column(column, justify="left" if column in ("program", "against") else "right")
    settings = [s for s in ("on", "off") if options.validate in (s, "both")]
    for name in options.case or CASES:
        for setting in settings:
            pyro.set_rng_seed(0)
            case = CASES[name]()
            for label, ours, theirs in measure(case, setting == "on", options.rounds):
                middle, low, high = ratio(ours, theirs)
                times = (f"{ours.median:.3f}", f"{theirs.median:.3f}")
                interval = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
                table.add_row(case.title, label, setting, *times, interval)
                print(f"{case.title:48} {label:20} {setting:4} {interval}", flush=True)
    show(table)


if __name__ == "__main__":
    main()
