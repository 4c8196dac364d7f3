"""One candidate's draws and times."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, final

import pyro

from amortized.compare.candidates import Candidate, Pair
from amortized.compare.draws import Sampler, noise_states
from amortized.compare.groups import SIDES, Trained
from amortized.compare.memory import peak_bytes
from amortized.compare.moments import BlockSums, Interval, block_sums
from amortized.errors import NonFiniteError

# intervals and p-values rest on the central limit theorem
LEAST_DRAWS: Final = 50
_NAMED = 4
# for the time of one draw: seconds a candidate, and turns
_LIMIT = 0.04
_LEAST_TURNS, _MOST_TURNS = 7, 50
_REPLICATES, _TAIL = 400, 0.025


@final
@dataclass(frozen=True)
class Timed:
    """Seconds of one evaluation, the median of turns, with a 95 % interval."""

    seconds: float
    interval: Interval


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of a candidate."""

    candidate: Candidate
    sampler: Sampler
    blocks: BlockSums
    evaluations: int | None
    peak_bytes: int

    def variance(self, known: Trained) -> float:
        """Of all parameters together: every one has a side; infinite: unknown."""
        pairs = zip(known.groups, known.sums(self.blocks), strict=True)
        parts = [part for group, part in pairs if group.name in SIDES]
        return math.inf if any(p.unseen for p in parts) else sum(p.variance for p in parts)


def measure(
    candidate: Candidate, pair: Pair, known: Trained, count: int, steps: int = 0
) -> Measured:
    """Evaluate once as training does, with all its looks, and then only draw.

    Raises:
        NonFiniteError: a gradient that is not finite.
        AmortizedError: what the candidate's loss refuses.
    """
    return measured(candidate, prepared(candidate, pair, known, steps), pair, known, count)


def prepared(candidate: Candidate, pair: Pair, known: Trained, steps: int) -> Sampler:
    """What draws are made from: one evaluation as training makes it is behind it.

    Raises:
        AmortizedError: what the candidate's loss refuses.
    """
    leaves = list(known.leaves.values())
    candidate.prepare(pair, steps)
    candidate.gradient(pair, leaves)
    with candidate.quiet(), pyro.validation_enabled(False):
        return Sampler(lambda: candidate.gradient(pair, leaves), (pair.model, pair.guide))


def measured(
    candidate: Candidate, sampler: Sampler, pair: Pair, known: Trained, count: int
) -> Measured:
    """So many draws of it, one by one where a recording proves to be another program.

    Raises:
        NonFiniteError: a gradient that is not finite.
    """
    with candidate.quiet(), pyro.validation_enabled(False):
        blocks = drawn(sampler, known, count)
        if not sampler.audited_after():
            blocks = drawn(sampler, known, count)
        peak = peak_bytes(sampler.gradient)
    return Measured(candidate, sampler, blocks, candidate.model_evaluations(pair), peak)


def pace_of(candidate: Candidate, sampler: Sampler) -> float:
    """Seconds of a clock that one draw takes."""
    with candidate.quiet(), pyro.validation_enabled(False):
        return sampler.pace()


def seconds_a_draw(measured: Mapping[str, Measured]) -> dict[str, Timed]:
    """Times of one evaluation, taken in turns, so that what varies varies for all."""
    times: dict[str, list[float]] = {name: [] for name in measured}
    with ExitStack() as stack:
        for found in measured.values():
            stack.enter_context(found.candidate.quiet())
        stack.enter_context(pyro.validation_enabled(False))
        began = time.perf_counter()
        for turn in range(_MOST_TURNS):
            if turn >= _LEAST_TURNS and time.perf_counter() - began > _LIMIT * len(measured):
                break
            for name, found in measured.items():
                times[name].append(found.sampler.seconds())
    return {name: timed(taken) for name, taken in times.items()}


def timed(taken: Sequence[float]) -> Timed:
    """The median of turns with the percentiles of its bootstrap, whose generator is its own."""
    again = random.Random(0)
    medians = (statistics.median(again.choices(taken, k=len(taken))) for _ in range(_REPLICATES))
    ordered, place = sorted(medians), round(_TAIL * _REPLICATES)
    return Timed(statistics.median(taken), (ordered[place], ordered[-1 - place]))


def drawn_again(measured: Measured, known: Trained, count: int) -> BlockSums:
    """Other draws of a candidate."""
    with measured.candidate.quiet(), pyro.validation_enabled(False):
        return drawn(measured.sampler, known, count)


def drawn(sampler: Sampler, known: Trained, count: int) -> BlockSums:
    """Draws as sums over blocks.

    Raises:
        NonFiniteError: naming the parameters.
    """
    before = noise_states(*sampler.programs)
    found = block_sums(sampler.chunks(count), count, [group.columns for group in known.groups])
    found = replace(found, noiseless=noise_states(*sampler.programs) == before)
    refuse_non_finite(found, known)
    return found


def refuse_non_finite(blocks: BlockSums, known: Trained) -> None:
    """Raise where a draw was not finite."""
    parts = known.by_name(blocks.mean)
    bad = [name for name, part in parts.items() if not bool(part.isfinite().all())]
    if bad:
        names = ", ".join(map(repr, bad[:_NAMED])) + (" and others" if len(bad) > _NAMED else "")
        raise NonFiniteError(
            f"the gradient of {names} is NaN or infinite in some of {blocks.count} draws; expected "
            "finite gradients; look for probabilities of 0 or 1, and for log, sqrt or a norm at 0"
        )
