"""Held-out numbers in bounded memory: the bound, its two terms, and the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import torch
from torch import Tensor

from amortized.errors import ProgramError, UsageError
from amortized.estimate import LogWeights
from amortized.fit.data import Batches, batch_length
from amortized.fit.memory import Footprint, Parts, free_bytes, is_out_of_memory, recover, split
from amortized.fit.rng import side_stream, torch_state
from amortized.fit.step import Stepper
from amortized.fit.terms import Averager, Terms
from amortized.programs.batches import leaves_of
from amortized.programs.records import DataPlate

# Rows that a network takes at once without a sweat, and that keep a processor busy.
_ROWS: Final = 128


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

    So does memory: a run is given half of what is free, judged by what one particle takes, and
    what does not fit nevertheless is tried again in halves, of the particles first, then of the
    batch. As long as ``max_rows`` fits, the noise depends on the seed, the batches and it alone.

    Raises:
        UsageError: ``num_particles`` or ``max_rows`` below 1.
    """

    def __init__(
        self, stepper: Stepper, data: DataPlate, *, num_particles: int, max_rows: int
    ) -> None:
        rows_at_once(num_particles, max_rows)  # refuses what is out of range
        self.stepper, self.data = stepper, data
        self.num_particles, self.max_rows = num_particles, max_rows
        self._one_by_one = not stepper.loss.vectorize
        self._averager = Averager()
        self._is_evidence = True
        self._parts = Parts()
        self._divide = self._ready = False

    def run(self, batches: Batches, *, divide: bool = False) -> dict[str, float]:
        """The numbers of one pass over the data.

        Args:
            batches: the data.
            divide: the size of the batches is ours, and may be less where memory is short.
        """
        self._divide = divide
        about = {"num_particles": self.num_particles, "per_datum": True}
        found = self._all_per_datum(batches)
        if found is not None:
            elbo, reconstruction, evidence = found
            kl = reconstruction - elbo
            terms = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl}
            return {**terms, **({"log_evidence": evidence} if self._is_evidence else {}), **about}
        for batch in batches.epoch():
            self._prepare(batch)
            self._average(batch)
        means = self._averager.means()
        terms = {name: means[name] for name in ("elbo", "reconstruction", "kl")}
        return {**terms, **about, "per_datum": self._averager.per_datum}

    def _prepare(self, batch: Any) -> None:
        """Before the first run: lowers ``max_rows`` to what half of the free memory holds."""
        for _ in self._parts.of(batch, self.stepper.warm_up):  # once; it may not fit, either
            pass
        if self._ready:
            return
        self._ready = True
        needed = self._row_bytes(split(batch, _ROWS)[0] if self._divide else batch)
        free = free_bytes(self._device(batch))
        if needed and free is not None:
            self.max_rows = min(self.max_rows, max(1, free // 2 // needed))
        if self._divide and self._parts.rows is None:
            self._parts.rows = self.max_rows

    def _row_bytes(self, batch: Any) -> int | None:
        """What one particle of one data point takes at most."""
        try:
            with side_stream(), self.stepper.evaluating(), Footprint() as footprint:
                self.stepper.log_weights(batch, self.data, 1)
        except Exception:  # whatever is wrong, the evaluation itself will say
            return None
        return -(-footprint.bytes // batch_length(batch))

    def _device(self, batch: Any) -> torch.device:
        tensors = leaves_of(self.stepper.placed(batch)).values()
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def _all_per_datum(self, batches: Batches) -> list[float] | None:
        """Means over the data of `_Particles.means`; None if one batch has no such numbers."""
        sums, size = torch.zeros(3, dtype=torch.float64), 0
        for batch in batches.epoch():
            self._prepare(batch)
            for means, _ in self._parts.of(batch, self._per_datum):
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
        rows, state = batch_length(batch), torch_state()
        while not self._one_by_one:
            count = min(wanted, max(1, self.max_rows // rows))
            try:
                return self.stepper.log_weights(batch, self.data, count)
            except Exception as error:
                short = is_out_of_memory(error)
                if count == 1 or not (short or isinstance(error, ProgramError)):
                    raise
            # A program that trains with one particle need not broadcast over several.
            self._one_by_one = not short
            self.max_rows = count // 2 * rows if short else self.max_rows
            recover(state)
        return self.stepper.log_weights(batch, self.data, 1)

    def _average(self, batch: Any) -> None:
        """The objective's own estimate, repeated until it has used as many particles."""
        per_run = getattr(self.stepper.loss.objective, "num_particles", 1)
        for _ in range(-(-self.num_particles // per_run)):
            for terms, rows in in_parts(self._parts, batch, self._terms):
                self._averager.add(terms, rows)

    def _terms(self, batch: Any) -> Terms:
        return Terms.of(self.stepper.evaluated(batch, self.data))


def rows_at_once(num_particles: int, max_rows: int) -> int:
    """Rows of a batch where nobody has said: many where the particles are few.

    Raises:
        UsageError: an argument below 1.

    >>> rows_at_once(100, 8192), rows_at_once(1, 8192), rows_at_once(1, 64)
    (128, 8192, 64)
    """
    for name, value in (("num_particles", num_particles), ("max_rows", max_rows)):
        if value < 1:
            raise UsageError(f"{name}={value}: expected at least 1")
    return min(max_rows, max(_ROWS, max_rows // num_particles))


def in_parts(
    parts: Parts, batch: Any, evaluated: Callable[[Any], Terms]
) -> Iterator[tuple[Terms, int]]:
    """The terms of a batch, or of the parts of it that fit into memory, and their rows.

    Raises:
        UsageError: memory is short, and numbers that are totals cannot be put together from parts.
    """
    rows = batch_length(batch)
    for terms, count in parts.of(batch, evaluated):
        if count < rows and not terms.per_datum:
            raise UsageError(
                f"a batch of {rows} rows does not fit into memory, and without a data plate it "
                "cannot be evaluated in parts; pass a smaller batch_size, or put the observations "
                "into pyro.plate('data', len(x))"
            )
        yield terms, count
