"""The variance of one estimator's gradient at a checkpoint: ``python -m ...variance JOB``.

Model and guide have the weights of the shared checkpoint. What the estimator itself has learned
comes from its own training, if there was one, and then learns there for some steps more, model and
guide held: a baseline that was trained elsewhere would be no measure of the estimator.

For each of a few fixed minibatches the gradient of the mean bound per datum in the guide's
parameters is drawn again and again; half the squared distance of two draws has the trace of their
covariance as its mean. Divided by the number of parameters that is the variance per element, by the
estimator's own noise alone: minibatches do not vary. Draws are whole eager steps, one by one, so
that whatever an estimator does with plates and copies is as in training; they take seconds.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amortized as am
from tests.benchmarks.belief_network.plan import Settings, write

BATCHES = 4


def at_checkpoint(
    settings: Settings, estimator: str, shared: Path, own: Path | None
) -> tuple[am.SVI, am.Program]:
    """The pair as the checkpoint has it, and an estimator that has learned there."""
    torch.manual_seed(0)
    program = settings.program()
    rates = {"model": 0.0, "guide": 0.0, "estimators": settings.lr}
    svi = settings.svi(estimator, program, lr=rates, compile="auto")
    first = program.train[: settings.batch]
    if own is not None:
        svi.load(own, first)
    svi.load(shared, first, estimators=False)
    before = [p.detach().clone() for p in program.guide.parameters()]
    learns = svi.loss.estimators.by_site.state_dict()
    if learns and settings.adapt:
        options: dict[str, Any] = {"batch_size": settings.batch, "seed": 1, "progress": False}
        svi.fit(program.train, max_steps=settings.adapt, check=False, **options)
    for held, now in zip(before, program.guide.parameters(), strict=True):
        if not torch.equal(held, now):
            raise RuntimeError("the guide has moved away from the checkpoint")
    svi.loss.eval()  # the estimator's state stays as it is
    return svi, program


def gradient(svi: am.SVI, x: Tensor) -> Tensor:
    """One draw, per datum, of the guide's parameters in a row."""
    model, guide = svi.model.program, svi.guide.program
    for module in (model, guide):
        module.zero_grad(set_to_none=True)
    svi.loss.loss_and_grads(model, guide, x)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in guide.parameters()]
    return torch.cat([g.flatten() for g in found]) / len(x)


def measured(settings: Settings, svi: am.SVI, train: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The variance with its standard error, and the mean gradient of each minibatch."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    pairs = max(2, settings.draws // (2 * BATCHES))
    traces, means = np.zeros((BATCHES, pairs)), []
    torch.manual_seed(3)
    for number in range(BATCHES):
        rows = order[number * settings.batch : (number + 1) * settings.batch]
        x, total = train[rows], torch.zeros((), dtype=torch.float64)
        for pair in range(pairs):
            one, two = (gradient(svi, x) for _ in range(2))
            traces[number, pair] = 0.5 * float((one - two).double().square().sum())
            total = total + one + two
        means.append(total / (2 * pairs))
    elements = len(means[0])
    error = math.sqrt((traces.var(1, ddof=1) / pairs).sum()) / BATCHES
    found = {
        "variance": float(traces.mean()) / elements,
        "error": error / elements,
        "elements": elements,
        "draws": 2 * pairs * BATCHES,
        "batches": BATCHES,
    }
    return found, torch.stack(means).float()


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings, file = Settings(**job["settings"]), Path(job["file"])
    own = Path(job["own"]) if job["own"] else None
    svi, program = at_checkpoint(settings, job["estimator"], Path(job["shared"]), own)
    found, means = measured(settings, svi, program.train)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file.with_suffix(".npy"), means.numpy())
    write(file, {**found, "shared": job["shared"], "adapted": bool(job["own"])})


if __name__ == "__main__":
    main()
