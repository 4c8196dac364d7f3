"""What ``compile="auto"`` chooses: whether a capture, and then a compilation, pays for itself.

A capture replays bit for bit what the eager step does, so the choice between those two may rest on
measured time. Compiled numbers differ by rounding. That choice rests on what is the same in every
run of a program, the size of its graph and the number of its steps, so that seeded runs agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

# a capture costs about as much as so many replays save; one without gradients costs a fourth
_CAPTURE_STEPS: Final = 400
_CAPTURE_EVALUATIONS: Final = 80
# seconds: torch's compiler, a graph of few calls; each further call; what each call costs a replay
_COMPILE_ONCE: Final = 6.0
_COMPILE_CALL: Final = 0.04
_REPLAY_CALL: Final = 2.5e-6
# replays this much slower than eager steps are given up
_VETO: Final = 1.25
_ENOUGH: Final = 20


@dataclass(frozen=True)
class Outlook:
    """How often a step of this signature was and will be taken; None: nobody knows."""

    past: int
    future: float | None

    @property
    def steps(self) -> float:
        """Steps to come; of an unknown number, as many as there were."""
        return self.past if self.future is None else self.future


def worth_capturing(outlook: Outlook, *, gradient: bool = True) -> bool:
    """Whether the steps to come repay the capture.

    >>> worth_capturing(Outlook(1, 100)), worth_capturing(Outlook(1, 5000))
    (False, True)
    """
    return outlook.steps >= (_CAPTURE_STEPS if gradient else _CAPTURE_EVALUATIONS)


def worth_compiling(outlook: Outlook, calls: int) -> bool:
    """Whether the steps to come repay the compilation of a graph of so many calls, twice over.

    >>> worth_compiling(Outlook(1, 14_000), calls=120), worth_compiling(Outlook(1, 10**6), 120)
    (False, True)
    """
    return outlook.steps * calls * _REPLAY_CALL >= 2 * (_COMPILE_ONCE + calls * _COMPILE_CALL)


class Stopwatch:
    """Seconds of the first steps of each kind."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Takes in one step; what comes after the first hundred is not looked at."""
        taken = self._taken.setdefault(kind, [])
        if len(taken) < 100:
            taken.append(seconds)

    def slower(self, ours: str, theirs: str, margin: float = _VETO) -> bool:
        """Whether one kind is clearly slower than the other, as far as both were seen."""
        first, second = self._taken.get(ours, []), self._taken.get(theirs, [])
        if min(len(first), len(second)) < _ENOUGH:
            return False
        return median(first) > margin * median(second)
