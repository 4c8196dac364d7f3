"""The held-out numbers of a learning curve: the same for every candidate, whatever its loss."""

from __future__ import annotations

from typing import Any, final

import pyro
import torch

from amortized.errors import ProgramError
from amortized.fit.data import as_batches, batch_length, first_batch, map_tensors
from amortized.fit.parameters import evaluation_mode
from amortized.fit.rng import seeded
from amortized.fit.svi import SVI
from amortized.fit.terms import Averager, Terms
from amortized.loss import VariationalLoss
from amortized.objectives.elbo import ELBO
from amortized.programs.batches import as_arguments
from amortized.programs.modules import modules_of
from amortized.programs.records import DataPlate


@final
class HeldOut:
    """Data, and the noise of every check.

    Args:
        svi: the pair, while it is trained.
        data: what `SVI.evaluate` takes.
        plate: the plate of data points, with the size of the training data.
        particles: draws from the guide for each data point.
        batch_size: data points at a time, where draws cannot be told apart by data point.
        device: where the pair is; None: where the data are.
        seed: of the noise.
    """

    def __init__(
        self,
        svi: SVI,
        data: Any,
        *,
        plate: DataPlate,
        particles: int,
        batch_size: int,
        device: str | torch.device | None,
        seed: int,
    ) -> None:
        self.svi, self.data, self.plate = svi, data, plate
        self.particles, self.batch_size, self.seed = particles, batch_size, seed
        self.device = device
        self._plain = VariationalLoss(ELBO(particles))
        self._networks = modules_of(svi.model.program, svi.guide.program)
        self._per_datum: bool | None = None

    def numbers(self) -> dict[str, float]:
        """``elbo``, ``log_evidence`` where a data point has one of its own, and ``per_datum``."""
        if self._per_datum is None:
            self._per_datum = self._looks_per_datum()
        if self._per_datum:
            return self.svi.evaluate(self.data, num_particles=self.particles, seed=self.seed)
        try:
            return self._averaged()
        except ProgramError:
            # what trains with one particle need not broadcast over several
            if not self._plain.vectorize:
                raise
            self._plain = VariationalLoss(ELBO(self.particles), vectorize=False)
            return self._averaged()

    def _looks_per_datum(self) -> bool:
        """Whether `SVI.evaluate` does without the loss, which need not have the ELBO in it."""
        args, kwargs = as_arguments(self._placed(first_batch(self.data, self.batch_size)))
        with seeded(self.seed), evaluation_mode(*self._networks):
            return self._plain.log_weights(
                self.svi.model, self.svi.guide, args, kwargs, num_particles=1, data=self.plate
            ).per_datum

    def _averaged(self) -> dict[str, float]:
        """The plain ELBO of a program with global latents or without a data plate."""
        averager, pair = Averager(), (self.svi.model, self.svi.guide)
        with seeded(self.seed), evaluation_mode(*self._networks), pyro.validation_enabled(False):
            for batch in as_batches(self.data, self.batch_size).epoch():
                args, kwargs = as_arguments(self._placed(batch))
                estimate = self._plain.estimate(*pair, args, kwargs, data=self.plate)
                averager.add(Terms.of(estimate), batch_length(batch))
        return {"elbo": averager.means()["elbo"], "per_datum": averager.per_datum}

    def _placed(self, batch: Any) -> Any:
        return batch if self.device is None else map_tensors(lambda t: t.to(self.device), batch)
