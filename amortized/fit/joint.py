"""A training's dealings with the other processes that take part in it; alone, it has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

import pyro

from amortized.errors import AmortizedError, NonFiniteError, UsageError, WorkerError
from amortized.fit.alike import (
    refuse_drift,
    refuse_other_callbacks,
    refuse_other_data,
    refuse_totals,
    refuse_unshared,
    share_optimizer,
    sums_of,
)
from amortized.fit.callbacks import FitState
from amortized.fit.distributed import Group, current_group, is_shared
from amortized.fit.interrupts import Interrupts
from amortized.fit.model_checkpoint import ModelCheckpoint
from amortized.fit.plan import Plan
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
            refuse_unshared(self.group, stepper.loss.objective)
            if stepper.loss.estimators.recipes.auto:
                raise UsageError(
                    f"estimators='auto' among {self.group.size} processes: each would choose by "
                    "its own clock; choose before, in one process, am.select_estimators(...), and "
                    "write the mapping down"
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

    def refuse_other_data(self, plan: Plan) -> None:
        """Raise where the processes were given other data than each other."""
        refuse_other_data(self.group, "train", plan.train)
        refuse_other_data(self.group, "val", plan.val)
        saving = [type(c).__name__ for c in plan.callbacks if isinstance(c, ModelCheckpoint)]
        refuse_other_callbacks(self.group, saving)

    def start(self) -> None:
        """Gives every process the parameters of the first, once they exist."""
        if self._reduction is not None:
            self._reduction.start(self._stepper.part())
            share_optimizer(self.group, self._stepper)

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of a pass; with other processes as many as any of these may have."""
        if self._reduction is None:
            return batches
        self._reduction.over = False
        return without_end(batches, self._failed)

    def attempt(self, batch: Any, step: Callable[[], None], place: str = "") -> None:
        """A step on a batch, if this process has one; what goes wrong, all hear of at `apply`.

        Args:
            batch: the rows of this process.
            step: takes it.
            place: which batch it is, where several make a step.
        """
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
        except NonFiniteError as error:
            reduction.error = NonFiniteError(f"{place}{error.args[0]}", error.table)
        except AmortizedError as error:
            parts = f"of each batch a process has a part of the rows, this one {rows_in(batch)}"
            reduction.error = type(error)(f"{error} ({parts})")
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

    def tell(self, calls: Iterable[Callable[[], Any]], *, at_once: bool = True) -> None:
        """Calls callbacks; what fails in one process ends training in all.

        Args:
            calls: with other processes each of them is made, as a later one may be a checkpoint
                that all take part in; but none after an error that all of them have.
            at_once: now; else with the next thing that the processes tell each other.
        """
        reduction = self._reduction
        if reduction is None:
            for call in calls:
                call()
            return
        for call in calls:
            try:
                call()
            except Exception as error:
                if is_shared(error):
                    raise
                reduction.error = reduction.error or self._of_callback(error)
        if at_once:
            error, reduction.error = reduction.error, None
            self.group.raise_for(error)

    def _of_callback(self, error: Exception) -> Exception:
        """No policy for steps that are not finite goes on after an error of a callback."""
        if not isinstance(error, NonFiniteError):
            return error
        found = WorkerError(f"a callback of process {self.group.rank} failed: {error.args[0]}")
        found.__cause__ = error
        return found

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

    def own_part(self, averagers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """This process's of them.

        Raises:
            WorkerError: after an error, where the first process alone writes what there is.
        """
        if self.group.alone and not self.group.writes:
            raise WorkerError("after an error the first process alone writes a checkpoint")
        return averagers[self.group.rank]

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
        moved = {id(leaf) for leaf in self._stepper.optimizer.leaves()}
        named = self._stepper.parameters.tensors().items()
        sums = sums_of({name: tensor for name, tensor in named if id(tensor) in moved})
        told = self.group.gathered((self._interrupts.received, state.stop, sums))
        self._interrupts.agreed = max((number or 0 for number, *_ in told)) or None
        state.stop = next((stop for _, stop, _ in told if stop is not None), None)
        refuse_drift([sums for *_, sums in told], state.epoch)

    def notices(self, own: list[str]) -> list[str]:
        """Those of all processes; what another alone has says whose it is."""
        first, *others = self.group.gathered(own)
        found = list(first)
        for rank, notices in enumerate(others, 1):
            for notice in notices:
                line = f"process {rank}: {notice}"
                if notice not in found and line not in found:
                    found.append(line)
        return found

    def leave(self, state: FitState) -> None:
        """After an error that this process alone may know of: it says nothing to the others."""
        if not self.group.alone:
            self.group, self._reduction = Group(self.group.rank), None
            state.whole = False

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
