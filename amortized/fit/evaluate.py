"""Held-out numbers in bounded memory: the bound, its two terms, and the evidence."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from amortized.errors import UsageError
from amortized.estimate import LogWeights
from amortized.fit.data import Batches, batch_length
from amortized.fit.step import Averager, Stepper
from amortized.programs.records import DataPlate


@final
class _Particles:
    """Running sums over the particles of one batch, shape ``[B]``, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.log_sum = torch.tensor(-math.inf, dtype=torch.float64)
        self.log_weight = torch.tensor(0.0, dtype=torch.float64)
        self.likelihood = torch.tensor(0.0, dtype=torch.float64)

    def add(self, chunk: LogWeights) -> None:
        """Takes in the log-weights of ``[k, B]`` more draws."""
        log_weight = (chunk.log_joint - chunk.log_guide).detach().cpu().double()
        self.count += len(log_weight)
        self.log_sum = torch.logaddexp(self.log_sum, log_weight.logsumexp(0))
        self.log_weight = self.log_weight + log_weight.sum(0)
        self.likelihood = self.likelihood + chunk.log_likelihood.detach().cpu().double().sum(0)

    def means(self) -> Tensor:
        """Bound, reconstruction and evidence of each data point, ``[3, B]``."""
        evidence = self.log_sum - math.log(self.count)
        return torch.stack([self.log_weight / self.count, self.likelihood / self.count, evidence])


def evaluate(
    stepper: Stepper, batches: Batches, data: DataPlate, *, num_particles: int, max_rows: int
) -> dict[str, float]:
    """See `amortized.SVI.evaluate`.

    Raises:
        UsageError: ``num_particles`` or ``max_rows`` below 1.
    """
    for name, value in (("num_particles", num_particles), ("max_rows", max_rows)):
        if value < 1:
            raise UsageError(f"{name}={value}: expected at least 1")
    sums, size = torch.zeros(3, dtype=torch.float64), 0
    totals = Averager()
    for batch in batches.epoch():
        stepper.warm_up(batch)
        means = None
        if not totals.weight:
            means = _per_datum(stepper, batch, data, num_particles, max_rows)
        if means is None:
            _average(stepper, batch, data, num_particles, totals)
        else:
            sums += means.sum(1)
            size += means.shape[1]
    if size:
        elbo, reconstruction, evidence = (sums / size).tolist()
        terms = {"elbo": elbo, "reconstruction": reconstruction, "kl": reconstruction - elbo}
        return {
            **terms,
            "log_evidence": evidence,
            "num_particles": num_particles,
            "per_datum": True,
        }
    means = totals.means()
    terms = {name: means[name] for name in ("elbo", "reconstruction", "kl")}
    return {**terms, "num_particles": num_particles, "per_datum": totals.per_datum}


def _per_datum(
    stepper: Stepper, batch: Any, data: DataPlate, num_particles: int, max_rows: int
) -> Tensor | None:
    """``[3, B]`` of `_Particles.means`; None where the program has no evidence per data point."""
    particles = _Particles()
    # Programs that cannot broadcast take one particle at a time.
    at_once = max(1, max_rows // batch_length(batch)) if stepper.loss.vectorize else 1
    with stepper.evaluating():
        while particles.count < num_particles:
            count = min(at_once, num_particles - particles.count)
            chunk = stepper.log_weights(batch, data, count)
            if not chunk.per_datum:
                return None
            particles.add(chunk)
    return particles.means()


def _average(
    stepper: Stepper, batch: Any, data: DataPlate, num_particles: int, totals: Averager
) -> None:
    """The objective's own estimate, repeated until it has used as many particles."""
    per_run = getattr(stepper.loss.objective, "num_particles", 1)
    for _ in range(-(-num_particles // per_run)):
        totals.add(stepper.terms(batch, data), batch_length(batch))
