"""Eager steps: ``loss_and_grads`` of this package against Pyro's own losses, interleaved.

    python -m tests.benchmarks.step_time [--rounds 15] [--case small] [--validate both]

The same pair of programs, batch and parameters for both; gradients are forgotten before each call.
Milliseconds are medians over rounds of the median call; a ratio below 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from rich.table import Table
from torch import nn

import amortized as am
from tests.benchmarks.programs import (
    BinaryGuide,
    BinaryModel,
    ChainGuide,
    ChainModel,
    MixtureGuide,
    MixtureModel,
    bernoulli,
    example,
    normal,
)
from tests.benchmarks.timing import Arm, interleave, ratio, show, zero


@dataclass
class Case:
    """One program, and pairs of (label, our loss, Pyro's loss) to be compared on it."""

    title: str
    model: nn.Module
    guide: nn.Module
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


def vae(pixels: int, hidden: int, latent: int) -> tuple[nn.Module, nn.Module]:
    """The pair of ``examples/vae.py``."""
    file = example("vae")
    return file.Model(pixels, latent, hidden), file.Guide(pixels, latent, hidden)


def images(batch: int, pixels: int) -> torch.Tensor:
    return torch.rand(batch, pixels).round()


def small() -> Case:
    return Case("VAE 64-64-8, batch 64", *vae(64, 64, 8), images(64, 64), vae_pairs())


def large() -> Case:
    return Case("VAE 784-400-20, batch 128", *vae(784, 400, 20), images(128, 784), vae_pairs())


def mixture() -> Case:
    pairs = [("TraceEnum_ELBO", am.VariationalLoss(), TraceEnum_ELBO(max_plate_nesting=1))]
    pair = MixtureModel(64, 64, 8, 10), MixtureGuide(64, 64, 8, 10)
    return Case("mixture VAE, 10 clusters enumerated", *pair, images(64, 64), pairs)


def binary() -> Case:
    pair = BinaryModel(64, 32, 16), BinaryGuide(64, 32, 16)
    return Case("two Bernoulli layers 64-32-16", *pair, images(64, 64), score_pairs())


def chain() -> Case:
    pair = ChainModel(100, normal), ChainGuide(100, normal)
    return Case("100 sequential Normal sites", *pair, torch.randn(100, 10), vae_pairs())


def score_chain() -> Case:
    pair = ChainModel(100, bernoulli), ChainGuide(100, bernoulli)
    return Case("100 sequential Bernoulli sites", *pair, torch.randn(100, 10), score_pairs())


def particles() -> Case:
    theirs = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    pairs = [("Trace_ELBO", am.VariationalLoss(am.ELBO(num_particles=10)), theirs)]
    return Case("VAE 64-64-8, 10 particles", *vae(64, 64, 8), images(64, 64), pairs)


CASES = {c.__name__: c for c in (small, large, mixture, binary, chain, score_chain, particles)}


def measure(case: Case, validate: bool, rounds: int) -> Iterator[tuple[str, Arm, Arm]]:
    """Ours and Pyro's, for each pair of the case."""
    model, guide, before = case.model, case.guide, zero(case.model, case.guide)
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
