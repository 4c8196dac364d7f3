"""Ctrl-C and SIGTERM wait for the end of a step, so that no state is caught half-changed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Final, final

# Ctrl-C and what schedulers send; a handler that the caller has set stays in charge.
_WATCHED: Final = (signal.SIGINT, signal.SIGTERM)
_UNTOUCHED: Final = (signal.SIG_DFL, signal.default_int_handler)


@final
class Interrupted(BaseException):
    """A signal asked training to end, and the step is complete (internal)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def terminates(self) -> bool:
        """Whether the process is to end too: anything but Ctrl-C."""
        return self.number != signal.SIGINT


@final
class Interrupts:
    """While entered, a signal is kept for `check`; a second Ctrl-C acts at once.

    A second SIGTERM does not: what sends it often sends several, and the checkpoint would be lost.
    Handlers can be set in the main thread only; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.shared = False
        """Whether processes train together, and end when all know of a signal: `agreed`."""
        self.agreed: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                before = signal.getsignal(number)
                if before in _UNTOUCHED:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self) -> None:
        """Called where all state is whole.

        Raises:
            Interrupted: a signal has come.
        """
        number = self.agreed if self.shared else self.received
        if number is not None:
            raise Interrupted(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.received
        # SIGTERM ends the process, whatever came before
        self.received = first if first == signal.SIGTERM else number
        if number == signal.SIGINT and first is not None:
            raise KeyboardInterrupt if first == signal.SIGINT else Interrupted(first)
        # the workers of a loader may have the handler too: they live on until the step is done
        if first is None and os.getpid() == self._process:
            again = " (again: at once)" if number == signal.SIGINT else ""
            # the reader of a pipe may be gone, or the write that was interrupted be one of ours
            with suppress(OSError, RuntimeError, ValueError):
                name = signal.Signals(number).name
                print(f"\n{name}: ending after this step{again}", file=sys.stderr)
