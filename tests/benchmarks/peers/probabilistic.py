"""The contestants that are pairs of Pyro programs: this package's steps, and Pyro's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import nn

import amortized as am
from amortized.errors import UsageError
from tests.benchmarks.peers.by_hand import device_asked
from tests.benchmarks.peers.works import CLUSTERS, LR, Work
from tests.benchmarks.programs import (
    BernoulliGuide,
    BernoulliModel,
    ChainGuide,
    ChainModel,
    MixtureGuide,
    MixtureModel,
    example,
    normal,
)

Step = Callable[[int], float]
"""The i-th step; returns the loss per data point."""


def pair(work: Work) -> tuple[nn.Module, nn.Module]:
    """Model and guide with the work's weights."""
    if work.kind == "vae":
        file, sizes = example("vae"), (work.outputs, work.latent, work.hidden)
        pair = file.Model(*sizes), file.Guide(*sizes)
    elif work.kind == "mixture":
        sizes = (work.outputs, work.hidden, work.latent, CLUSTERS)
        pair = MixtureModel(*sizes), MixtureGuide(*sizes)
    elif work.kind == "bernoulli":
        sizes = (work.outputs, work.latent)
        pair = BernoulliModel(*sizes), BernoulliGuide(*sizes)
    else:
        pair = ChainModel(work.latent, normal), ChainGuide(work.latent, normal)
    weights = {name: torch.from_numpy(value) for name, value in work.weights().items()}
    for module in pair:
        module.load_state_dict({name: weights.pop(name) for name in module.state_dict()})
    if weights:
        raise RuntimeError(f"{work.name}: no such parameters: {', '.join(weights)}")
    for module in pair:
        module.to(device_asked())
    return pair


def batches(work: Work) -> list[torch.Tensor]:
    return [torch.from_numpy(batch).to(device_asked()) for batch in work.batches()]


def our_loss(work: Work) -> am.VariationalLoss:
    estimators = None
    if work.kind == "bernoulli":
        estimators = am.ScoreFunction(am.LeaveOneOut(), num_samples=work.samples)
    return am.VariationalLoss(am.ELBO(num_particles=work.particles), estimators)


def their_loss(work: Work) -> PyroELBO:
    """Pyro's loss for the work; its score function has no leave-one-out, so it has particles."""
    if work.kind == "mixture":
        return TraceEnum_ELBO(max_plate_nesting=1)
    particles = work.particles * work.samples
    if particles == 1:
        return Trace_ELBO()
    return Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)


def our_step(work: Work, mode: Any) -> Step:
    """``am.SVI.step``."""
    data, (model, guide) = batches(work), pair(work)
    try:
        svi = am.SVI(model, guide, our_loss(work), lr=LR, compile=mode)
    except UsageError as error:
        raise ImportError(str(error)) from error
    return lambda i: svi.step(data[i % len(data)])


def their_step(work: Work) -> Step:
    """``pyro.infer.SVI.step`` with Pyro's optimizer, validation off."""
    pyro.enable_validation(False)
    data, (model, guide) = batches(work), pair(work)
    svi: Any = SVI(model, guide, Adam({"lr": LR}), their_loss(work))
    return lambda i: svi.step(data[i % len(data)]) / work.data


def their_loss_with_fused_adam(work: Work) -> Step:
    """Pyro's loss as an ``ELBOModule`` and torch's optimizer: the fast way to use Pyro."""
    pyro.enable_validation(False)
    data, (model, guide) = batches(work), pair(work)
    loss = their_loss(work)(model, guide)
    loss(data[0])
    optimizer = torch.optim.Adam(loss.parameters(), lr=LR, fused=True)

    def step(i: int) -> float:
        optimizer.zero_grad()
        value = loss(data[i % len(data)])
        value.backward()
        optimizer.step()
        return value.item() / work.data

    return step


def loss_and_grads(work: Work, whose: str) -> Step:
    """The loss and its gradient alone; no parameter moves."""
    pyro.enable_validation(False)
    data, (model, guide) = batches(work), pair(work)
    loss: Any = our_loss(work) if whose == "ours" else their_loss(work)
    leaves = [*model.parameters(), *guide.parameters()]

    def step(i: int) -> float:
        for leaf in leaves:
            leaf.grad = None
        return loss.loss_and_grads(model, guide, data[i % len(data)]) / work.data

    return step
