"""The captured evaluations of a pair: graphs without gradients, for its validation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, final

from amortized.errors import ProgramError
from amortized.fit.buffers import MovingBuffers
from amortized.fit.compiled.capture import CaptureError
from amortized.fit.compiled.steps import Compile, CompiledSteps


@final
class Evaluations:
    """What is captured of validation, from one call of ``fit`` to the next.

    Validation is replayed, and never compiled: its numbers are bit for bit the eager ones in every
    mode, so that no choice of ours can stop a training earlier.

    Args:
        asked: the mode that the user has chosen.
    """

    def __init__(self, asked: Compile) -> None:
        self.asked: Compile = asked
        self.mode: Compile = "graph" if asked == "inductor" else asked
        self.buffers = MovingBuffers([])
        """Those that evaluations move; of all modules, once there are captured evaluations."""
        self._steps: CompiledSteps | None = None
        self._made_for: Hashable = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles capture anew: a graph refers to these very parameters."""
        fresh = {"buffers": MovingBuffers([]), "_steps": None, "_made_for": None}
        return {**vars(self), **fresh}

    def steps(self, made_for: Hashable, make: Callable[[], CompiledSteps]) -> CompiledSteps:
        """The captured evaluations; made anew where ``made_for`` is no longer the same."""
        if self._steps is None or made_for != self._made_for:
            self._steps, self._made_for = make(), made_for
        return self._steps

    def refuse(self, error: CaptureError, epoch: int) -> str:
        """Validation is eager from now on: one sentence that says why.

        Raises:
            ProgramError: replays had served, a graph was asked for, and they no longer agree.
        """
        if error.drifted and self.asked != "auto":
            raise ProgramError(
                f"compile={self.asked!r}: the graph of validation no longer serves: {error}; use "
                "compile='off'"
            ) from error
        self.mode, self._steps = "off", None
        doubt = ""
        if error.drifted:
            doubt = f"; the numbers of validation may be wrong from epoch {error.kept} to {epoch}"
        return (
            f"compile={self.asked!r}: validation runs eagerly from epoch {epoch}, since it cannot "
            f"be captured: {error}{doubt}"
        )
