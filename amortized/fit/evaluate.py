"""Held-out numbers in bounded memory: the bound, its two terms, and the evidence."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from amortized.errors import ProgramError, UsageError
from amortized.estimate import LogWeights
from amortized.fit.data import Batches, batch_length
from amortized.fit.step import Stepper
from amortized.fit.terms import Averager
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


@final
class Evaluation:
    """One call of `amortized.SVI.evaluate`; ``max_rows`` bounds particles times data at a time.

    Raises:
        UsageError: ``num_particles`` or ``max_rows`` below 1.
    """

    def __init__(
        self, stepper: Stepper, data: DataPlate, *, num_particles: int, max_rows: int
    ) -> None:
        for name, value in (("num_particles", num_particles), ("max_rows", max_rows)):
            if value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")
        self.stepper, self.data = stepper, data
        self.num_particles, self.max_rows = num_particles, max_rows
        self._one_by_one = not stepper.loss.vectorize
        self._averager = Averager()
        self._is_evidence = True

    def run(self, batches: Batches) -> dict[str, float]:
        """The numbers of one pass over the data."""
        about = {"num_particles": self.num_particles, "per_datum": True}
        found = self._all_per_datum(batches)
        if found is not None:
            elbo, reconstruction, evidence = found
            kl = reconstruction - elbo
            terms = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl}
            return {**terms, **({"log_evidence": evidence} if self._is_evidence else {}), **about}
        for batch in batches.epoch():
            self.stepper.warm_up(batch)
            self._average(batch)
        means = self._averager.means()
        terms = {name: means[name] for name in ("elbo", "reconstruction", "kl")}
        return {**terms, **about, "per_datum": self._averager.per_datum}

    def _all_per_datum(self, batches: Batches) -> list[float] | None:
        """Means over the data of `_Particles.means`; None if one batch has no such numbers."""
        sums, size = torch.zeros(3, dtype=torch.float64), 0
        for batch in batches.epoch():
            self.stepper.warm_up(batch)
            means = self._per_datum(batch)
            if means is None:
                return None
            sums += means.sum(1)
            size += means.shape[1]
        return (sums / size).tolist() if size else None

    def _per_datum(self, batch: Any) -> Tensor | None:
        """``[3, B]`` of `_Particles.means`; None where a data point has no evidence of its own."""
        particles = _Particles()
        with self.stepper.evaluating():
            while particles.count < self.num_particles:
                chunk = self._chunk(batch, self.num_particles - particles.count)
                if not chunk.per_datum:
                    return None
                self._is_evidence = self._is_evidence and chunk.is_evidence
                particles.add(chunk)
        return particles.means()

    def _chunk(self, batch: Any, wanted: int) -> LogWeights:
        """Log-weights of at most ``wanted`` particles."""
        if not self._one_by_one:
            count = min(wanted, max(1, self.max_rows // batch_length(batch)))
            try:
                return self.stepper.log_weights(batch, self.data, count)
            except ProgramError:
                # A program that trains with one particle need not broadcast over several.
                self._one_by_one = True
        return self.stepper.log_weights(batch, self.data, 1)

    def _average(self, batch: Any) -> None:
        """The objective's own estimate, repeated until it has used as many particles."""
        per_run = getattr(self.stepper.loss.objective, "num_particles", 1)
        for _ in range(-(-self.num_particles // per_run)):
            terms = self.stepper.terms(batch, self.data)
            self._averager.add(terms, batch_length(batch))
