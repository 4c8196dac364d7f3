"""Held-out numbers in bounded memory: bounds, the ELBO's two terms, effective sample sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

from amortized.errors import ProgramError, UsageError
from amortized.estimate import LogWeights
from amortized.fit.alike import refuse_totals
from amortized.fit.arguments import refuse_no_count
from amortized.fit.data import Batches, batch_length
from amortized.fit.distributed import current_group
from amortized.fit.memory import Footprint, Parts, free_bytes, is_out_of_memory, recover, split
from amortized.fit.particles import Particles
from amortized.fit.rng import side_stream, torch_state
from amortized.fit.shards import rows_in
from amortized.fit.step import Stepper, sized
from amortized.fit.terms import Averager, Terms
from amortized.loss import VariationalLoss
from amortized.programs.batches import as_arguments, leaves_of
from amortized.programs.records import DataPlate

# Rows that a network takes at once without a sweat, and that keep a processor busy.
_ROWS: Final = 128


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
        self,
        stepper: Stepper,
        data: DataPlate,
        *,
        num_particles: int | Sequence[int],
        max_rows: int,
    ) -> None:
        self.sizes = sizes_of(num_particles)
        self.num_particles, self.max_rows = max(self.sizes), max_rows
        rows_at_once(self.num_particles, max_rows)  # refuses what is out of range
        self.stepper, self.data = stepper, data
        self._several = isinstance(num_particles, Sequence)
        self._one_by_one = not stepper.loss.vectorize
        # what is learned from is not the data, and has no ELBO: the pair has one nevertheless
        weighs = stepper.loss.objective.weighs_particles
        self._plain = None if weighs else VariationalLoss(vectorize=stepper.loss.vectorize)
        self._averager = Averager()
        self._is_evidence = True
        self._parts, self._group = Parts(), current_group()
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
            elbo, reconstruction, effective, *bounds = found
            kl = reconstruction - elbo
            terms = {"elbo": elbo, "reconstruction": reconstruction, "kl": kl}
            if self._is_evidence:
                terms["log_evidence"] = bounds[-1]
                if self._several:
                    named = zip(self.sizes, bounds, strict=True)
                    terms |= {f"log_evidence/{size}": bound for size, bound in named}
                terms["ess"] = effective
            return {**terms, **about}
        averager = Averager.of(
            self._group.gathered(self._group.agreed(lambda: self._sums(batches)))
        )
        means = averager.means()
        terms = {name: means[name] for name in ("elbo", "reconstruction", "kl")}
        return {**terms, **about, "per_datum": averager.per_datum}

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
        """Means over the data of `Particles.means`; None if one batch has no such numbers."""
        own = self._group.agreed(lambda: self._sums_per_datum(batches))
        told = self._group.gathered((own, self._is_evidence))
        self._is_evidence = all(is_evidence for _, is_evidence in told)
        found = [part for part, _ in told if part is not None]
        if len(found) < len(told):
            return None
        sums, size = found[0]
        for more, count in found[1:]:
            sums, size = sums + more, size + count
        return (sums / size).tolist() if size else None

    def _sums_per_datum(self, batches: Batches) -> tuple[Tensor, int] | None:
        """Of this process's data: the sums, and their number."""
        sums, size = torch.zeros(3 + len(self.sizes), dtype=torch.float64), 0
        for batch in batches.epoch():
            if not rows_in(batch):
                continue
            self._prepare(batch)
            for means, _ in self._parts.of(batch, self._per_datum):
                if means is None:
                    return None
                sums += means.sum(1)
                size += means.shape[1]
        return sums, size

    def _sums(self, batches: Batches) -> dict[str, Any]:
        """Of this process's data, as the objective estimates them."""
        for batch in batches.epoch():
            if rows_in(batch):
                self._prepare(batch)
                self._average(batch)
        return self._averager.on_cpu()

    def _per_datum(self, batch: Any) -> Tensor | None:
        """`Particles.means`, ``[*, B]``; None where a data point has no evidence of its own."""
        particles = Particles(self.sizes)
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
        per_run = self.stepper.loss.objective.num_particles
        for _ in range(-(-self.num_particles // per_run)):
            for terms, rows in in_parts(self._parts, batch, self._terms):
                refuse_totals(terms, batch, self._group)
                self._averager.add(terms, rows)

    def _terms(self, batch: Any) -> Terms:
        stepper, plain = self.stepper, self._plain
        if plain is None:
            return Terms.of(stepper.evaluated(batch, self.data))
        with stepper.evaluating():
            args, kwargs = as_arguments(stepper.placed(batch))
            pair = stepper.model, stepper.guide
            data = sized(self.data, batch_length(batch))
            return Terms.of(plain.estimate(*pair, args, kwargs, data=data))


def sizes_of(num_particles: int | Sequence[int]) -> list[int]:
    """Every K of a bound that is asked for, rising.

    Raises:
        UsageError: no counts.

    >>> sizes_of(5), sizes_of([50, 1, 5])
    ([5], [1, 5, 50])
    """
    asked = list(num_particles) if isinstance(num_particles, Sequence) else [num_particles]
    if not asked:
        raise UsageError("num_particles=[]: expected a number of particles, or several")
    for size in asked:
        refuse_no_count("num_particles", size)
    return sorted({int(size) for size in asked})


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
