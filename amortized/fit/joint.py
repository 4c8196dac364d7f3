"""A training's dealings with the other processes that take part in it; alone, it has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

import pyro

from amortized.errors import UsageError
from amortized.fit.callbacks import FitState
from amortized.fit.distributed import Group, current_group
from amortized.fit.interrupts import Interrupts
from amortized.fit.lone import refuse_totals
from amortized.fit.reduction import Reduction
from amortized.fit.rng import fresh_seed, rng_state
from amortized.fit.shards import NoRows, rows_in, without_end
from amortized.fit.step import Stepper
from amortized.fit.terms import Averager, Terms

T = TypeVar("T")


@final
class Joint:
    """What the processes of a training tell each other, and what each keeps until it may.

    Every process takes the same steps: one without rows, or whose step failed, takes part in the
    sum at the end of the step, and all hear how it went.

    Args:
        stepper: whose gradients are added up.
        interrupts: signals, which end training in every process after the same step.
    """

    def __init__(self, stepper: Stepper, interrupts: Interrupts) -> None:
        self.group = current_group()
        stepper.parameters.training = self.group.first(stepper.parameters.training)
        self._stepper, self._interrupts = stepper, interrupts
        self._waiting: list[tuple[Terms, int]] = []
        self._reduction: Reduction | None = None
        if not self.group.alone:
            self._reduction = Reduction(self.group, lambda: interrupts.received)
            interrupts.shared = True
            if stepper.loss.estimators.recipes.auto:
                raise UsageError(
                    f"estimators='auto' among {self.group.size} processes: each would choose by "
                    "its own clock; choose first, am.select_estimators(...), and pass the mapping"
                )
        stepper.reduction = self._reduction

    def seeds(self) -> tuple[int, int]:
        """One seed of the order and one of validation for all; the noise of each is its own."""
        shuffle, validation = self.group.first((fresh_seed(), fresh_seed()))
        if self.group.rank:
            pyro.set_rng_seed(self.group.seed(shuffle, validation))
        return shuffle, validation

    def own_seed(self, seed: int) -> int:
        """That of a process: the first one has the seed of a single process."""
        return self.group.seed(seed) if self.group.rank else seed

    def once(self, function: Callable[[], T]) -> T:
        """As `Group.once`."""
        return self.group.once(function)

    def agreed(self, function: Callable[[], T]) -> T:
        """As `Group.agreed`."""
        return self.group.agreed(function)

    def start(self) -> None:
        """Gives every process the parameters of the first, once they exist."""
        if self._reduction is not None:
            self._reduction.start(self._stepper.part())

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of a pass; with other processes as many as any of these may have."""
        if self._reduction is None:
            return batches
        self._reduction.over = False
        return without_end(batches, self._failed)

    def attempt(self, batch: Any, step: Callable[[], None]) -> None:
        """A step on a batch, if this process has one; what goes wrong, all hear of at `apply`."""
        reduction = self._reduction
        if reduction is None:
            step()
            return
        reduction.had_a_batch = reduction.had_a_batch or not isinstance(batch, NoRows)
        if not rows_in(batch) or reduction.error is not None:
            return
        try:
            step()
            refuse_totals(self._waiting[-1][0], batch, self.group)
        except Exception as error:
            reduction.error = error

    def apply(self, clip: float | None, averager: Averager) -> float | None:
        """The norm of a step that all have taken; None where no process had a batch."""
        waiting, self._waiting = self._waiting, []
        try:
            norm = self._stepper.apply(clip)
        finally:
            if self._reduction is not None:
                self._interrupts.agreed = self._reduction.signal
        for terms, rows in waiting:
            averager.add(terms, rows)
        return None if self.over else norm

    def add(self, averager: Averager, terms: Terms, rows: int) -> None:
        """Terms of a batch; with other processes, when none of them has failed at it."""
        if self._reduction is None:
            averager.add(terms, rows)
        else:
            self._waiting.append((terms, rows))

    @property
    def over(self) -> bool:
        """Whether no process had a batch for the last step."""
        return self._reduction is not None and self._reduction.over

    def merged(self, averager: Averager) -> Averager:
        """The sums of all processes."""
        return averager if self.group.alone else Averager.of(self.gathered(averager))

    def gathered(self, averager: Averager) -> list[dict[str, Any]]:
        """The sums of each process, on the CPU."""
        return self.group.gathered(averager.on_cpu())

    def together(
        self, own: Mapping[str, Any], averagers: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What a checkpoint keeps of all processes: the state of each, and sums of all."""
        if self.group.alone:
            return {}
        averager = Averager.of(averagers).state_dict()
        return {"averager": averager, "processes": self.group.gathered(dict(own))}

    def agree(self, state: FitState) -> None:
        """After an epoch: signals and callbacks that end training in one process do so in all."""
        if self.group.alone:
            return
        told = self.group.gathered((self._interrupts.received, state.stop))
        self._interrupts.agreed = max((number or 0 for number, _ in told)) or None
        state.stop = next((stop for _, stop in told if stop is not None), None)

    def leave(self, state: FitState) -> None:
        """After an error that this process alone may know of: it says nothing to the others."""
        if not self.group.alone:
            self.group, state.whole = Group(self.group.rank), False

    def close(self) -> None:
        """Lone steps are this process's own again, until they ask."""
        self._stepper.reduction = None

    def own(self, saved: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any]:
        """What a checkpoint has of this process; with another number of them, nothing."""
        if len(saved) == self.group.size and not self.group.alone:
            return saved[self.group.rank]
        if max(len(saved), 1) != self.group.size and self.group.writes:
            warnings.warn(
                f"resumed in {self.group.size} processes, and there were {max(len(saved), 1)}: the "
                "noise is other noise of the same law from here on",
                stacklevel=2,
            )
        if self.group.rank:
            pyro.set_rng_seed(self.group.seed(step))
            return {"averager": Averager().state_dict(), "rng": rng_state()}
        return {}

    def _failed(self, error: Exception) -> None:
        # a signal also ends the workers of a loader: all stop after this step
        if self._reduction is not None and self._interrupts.received is None:
            self._reduction.error = self._reduction.error or error
