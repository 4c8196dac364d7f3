"""One optimizer step, and the terms of a bound per data point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import pyro
from torch import Tensor

from amortized.errors import NonFiniteError
from amortized.estimate import Estimate, LogWeights
from amortized.fit.data import batch_length, map_tensors
from amortized.fit.optimizer import GroupedOptimizer
from amortized.fit.parameters import Parameters, evaluation_mode
from amortized.fit.rng import side_stream
from amortized.loss import VariationalLoss
from amortized.programs.batches import as_arguments
from amortized.programs.records import DataPlate


@dataclass(frozen=True)
class Terms:
    """The terms of one batch in nats, detached: per data point, or totals without a data plate.

    ``values`` maps ``loss``, ``elbo``, ``reconstruction``, ``kl`` and ``kl/<site>`` to scalars.
    """

    values: dict[str, Tensor]
    per_datum: bool

    @classmethod
    def of(cls, estimate: Estimate) -> Terms:
        """Of an estimate in Pyro's scale: divided by the full size of its data plate."""
        size = estimate.data_size or 1
        values = {
            "loss": estimate.loss.detach(),
            "elbo": estimate.elbo,
            "reconstruction": estimate.reconstruction,
            "kl": estimate.kl,
        }
        values |= {f"kl/{site}": kl for site, kl in estimate.kl_per_site.items()}
        scaled = {name: value / size for name, value in values.items()}
        return cls(scaled, estimate.data_size is not None)


@final
class Averager:
    """The mean of terms over the batches of an epoch, weighted by data points."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self.weight = 0
        self.per_datum = True

    def add(self, terms: Terms, weight: int) -> None:
        """Takes in the terms of a batch of ``weight`` data points."""
        self.weight += weight
        self.per_datum = self.per_datum and terms.per_datum
        for name, value in terms.values.items():
            total = self._totals.get(name)
            self._totals[name] = value * weight if total is None else total + value * weight

    def means(self) -> dict[str, float]:
        """As Python floats; a site that some batches lack counts as zero there."""
        return {name: float(total) / self.weight for name, total in self._totals.items()}


@final
class Stepper:
    """A pair, its loss, its parameters and its optimizer: everything that one step moves."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: VariationalLoss,
        optimizer: GroupedOptimizer,
        *,
        validate: bool = False,
    ) -> None:
        self.model, self.guide, self.loss = model, guide, loss
        self.optimizer = optimizer
        self.parameters = Parameters(model, guide, loss)
        self.validate = validate
        self.steps = 0
        self._count = -1
        self._first: Tensor | None = None

    def warm_up(self, batch: Any) -> None:
        """Runs the pair once, so that every parameter exists; the global stream does not move."""
        if self._count >= 0:
            return
        batch = self._placed(batch)
        with self.parameters.scope(), side_stream():
            self.loss.warm_up(self.model, self.guide, batch)
        self._sync(batch)

    def step(self, batch: Any, data: DataPlate) -> Terms:
        """One optimizer step on the loss per data point.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the parameters stay as they were.
        """
        self.warm_up(batch)
        batch = self._placed(batch)
        with self.parameters.scope(), self._validation():
            args, kwargs = as_arguments(batch)
            data = replace(data, rows=batch_length(batch))
            estimate = self.loss.estimate(self.model, self.guide, args, kwargs, data=data)
            self._refuse_non_finite(estimate)
            if self.parameters.count() != self._count:
                self._sync(batch)
            self.optimizer.zero_grad()
            (estimate.loss / (estimate.data_size or 1)).backward()
            self.optimizer.step()
        self.steps += 1
        return Terms.of(estimate)

    def terms(self, batch: Any, data: DataPlate) -> Terms:
        """The terms of a batch in eval mode and without gradients; nothing moves."""
        self.warm_up(batch)
        args, kwargs = as_arguments(self._placed(batch))
        with self.evaluating():
            return Terms.of(self.loss.estimate(self.model, self.guide, args, kwargs, data=data))

    def log_weights(self, batch: Any, data: DataPlate, num_particles: int) -> LogWeights:
        """Plain draws of a batch: to be called while `evaluating`."""
        args, kwargs = as_arguments(self._placed(batch))
        return self.loss.log_weights(
            self.model, self.guide, args, kwargs, num_particles=num_particles, data=data
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The private store, eval mode, no gradients, no validation."""
        with self.parameters.scope(), evaluation_mode(*self.parameters.networks):
            with self._validation():
                yield

    @contextmanager
    def _validation(self) -> Iterator[None]:
        # A distribution checks its arguments when they are used, so the whole step is inside.
        if self.validate or self.steps == 0:
            yield
        else:
            with pyro.validation_enabled(False):
                yield

    def _placed(self, batch: Any) -> Any:
        """The batch on the device of the parameters."""
        if self._first is None:
            self._first = self.parameters.first()
        if self._first is None:
            return batch
        device = self._first.device
        return map_tensors(lambda t: t if t.device == device else t.to(device), batch)

    def _refuse_non_finite(self, estimate: Estimate) -> None:
        if not math.isfinite(estimate.loss.item()):
            raise NonFiniteError(f"step {self.steps + 1}: {estimate.non_finite_report()}")

    def _sync(self, batch: Any) -> None:
        """Hands new parameters to the optimizer: at warm-up, and when a branch declares more."""
        self.parameters.attribute(*as_arguments(batch))
        self._count = self.parameters.count()
        self.optimizer.sync(self.parameters.groups())
