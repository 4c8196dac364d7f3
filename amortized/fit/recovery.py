"""What happens at a step whose loss or gradient is not finite: raise, skip, or roll back."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final, Literal, final

from amortized.errors import NonFiniteError
from amortized.fit.arguments import one_of, refuse_no_count
from amortized.fit.schedule import LearningRateSchedule
from amortized.fit.step import Stepper

Policy = Literal["raise", "skip", "rollback"]
POLICIES: Final[tuple[Policy, ...]] = ("raise", "skip", "rollback")

# Steps between two snapshots to roll back to; a shorter epoch has one at its start.
_SNAPSHOT_EVERY: Final = 100
_LOWER_RATE: Final = 0.5


class Recovery(ABC):
    """Decides whether training goes on after a step that moved nothing.

    Attributes:
        counts: what happened so far in this epoch, as keys of the history.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @abstractmethod
    def recover(self, error: NonFiniteError) -> None:
        """Makes training fit to go on, or raises the error."""

    def begin(self) -> None:  # noqa: B027
        """Parameters and optimizer exist, and a batch is about to be used."""

    def restart(self) -> None:  # noqa: B027
        """Earlier moments hold the state of other estimators."""

    def after_step(self) -> None:  # noqa: B027
        """A good step was taken."""

    def epoch_start(self) -> None:
        """An epoch begins."""
        self.counts = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; what another policy counted is left out."""
        self.counts = dict(state["counts"])


@final
class Raise(Recovery):
    """Training ends."""

    def recover(self, error: NonFiniteError) -> None:
        """Raises."""
        raise error


@final
class Skip(Recovery):
    """The batch is left out; too many in a row end training."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._in_a_row = 0

    def recover(self, error: NonFiniteError) -> None:
        """Counts."""
        self._in_a_row += 1
        if self._in_a_row > self.limit:
            raise NonFiniteError(
                f"{self.limit} batches in a row were skipped (non_finite='skip'), and the next one "
                f"is no better: {error.args[0]}",
                error.table,
            ) from error
        self.counts["skipped_steps"] = self.counts.get("skipped_steps", 0) + 1

    def after_step(self) -> None:
        """A run of bad batches is over."""
        self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """The run of bad batches too."""
        return {**super().state_dict(), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting."""
        super().load_state_dict(state)
        self._in_a_row = state.get("in_a_row", 0)


@final
class Rollback(Recovery):
    """Parameters and optimizer go back to a good moment, with half the learning rate.

    Two moments are kept: if training fails again before the newer one is old, the older is used.
    Both are part of a checkpoint, so that a training that is resumed goes back to the same ones.
    """

    def __init__(self, limit: int, stepper: Stepper, schedule: LearningRateSchedule | None) -> None:
        super().__init__()
        self.limit, self.stepper, self.schedule = limit, stepper, schedule
        self._used = 0
        self._steps = 0
        self._kept: list[dict[str, Any]] = []

    def recover(self, error: NonFiniteError) -> None:
        """Restores, and lowers the rates."""
        if self._used >= self.limit or not self._kept:
            raise NonFiniteError(
                f"training was rolled back {self._used} times (non_finite='rollback'), and fails "
                f"again: {error.args[0]}",
                error.table,
            ) from error
        self._used += 1
        self.counts["rollbacks"] = self.counts.get("rollbacks", 0) + 1
        # the factor counts from the rates now, which an earlier rollback may have lowered
        rates, steps = self.stepper.optimizer.rates(), self.stepper.steps
        self.stepper.load_state_dict(self._kept[-1])
        self.stepper.steps = steps  # checkpoints are ordered by their steps
        self.stepper.optimizer.set_rates(rates)
        self.stepper.optimizer.scale_rates(_LOWER_RATE)
        if self.schedule is not None:
            self.schedule.scale(_LOWER_RATE)
        if len(self._kept) > 1:
            self._kept.pop()
        self._steps = 0

    def begin(self) -> None:
        """Keeps the first moment."""
        if not self._kept:
            self._keep()

    def restart(self) -> None:
        """Keeps this moment, and no other."""
        self._kept = []
        self._keep()

    def after_step(self) -> None:
        """Keeps a moment now and then."""
        self._steps += 1
        if self._steps % _SNAPSHOT_EVERY == 0:
            self._keep()

    def epoch_start(self) -> None:
        """Keeps the moment."""
        super().epoch_start()
        if self._kept:
            self._keep()

    def state_dict(self) -> dict[str, Any]:
        """How often it went back, and the moments."""
        counts = {"used": self._used, "steps": self._steps}
        return {**super().state_dict(), **counts, "kept": list(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on counting."""
        super().load_state_dict(state)
        self._used, self._steps = state.get("used", 0), state.get("steps", 0)
        # tensors that the file alone has: `recover` copies them
        self._kept = list(state.get("kept", ()))

    def _keep(self) -> None:
        if not all(bool(leaf.isfinite().all()) for leaf in self.stepper.optimizer.leaves()):
            return  # the next batch will tell
        self._kept = [*self._kept[-1:], copy.deepcopy(self.stepper.state_dict())]


def recovery_of(
    policy: Policy, limit: int, stepper: Stepper, schedule: LearningRateSchedule | None
) -> Recovery:
    """The recovery by the name of its policy.

    Raises:
        UsageError: another name, or a limit below 1.
    """
    refuse_no_count("non_finite_limit", limit)
    policy = one_of("non_finite", policy, POLICIES)
    if policy == "raise":
        return Raise()
    if policy == "skip":
        return Skip(limit)
    return Rollback(limit, stepper, schedule)
