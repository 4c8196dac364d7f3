"""A process that forks others to be killed: importing torch takes seconds, a fork milliseconds.

with Nursery("tests.faults.writer") as nursery:
    pid = nursery.start("write_forever", "runs/vae", "runs/done")
    nursery.kill(pid)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Nursery:
    """Forks functions of a module, which is imported once. For one thread and one user."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", "tests.faults.nursery", module]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends with all that it forked."""
        self._process.communicate(timeout=60)

    def start(self, function: str, *arguments: Any) -> int:
        """Forks; the child calls a function of the module and exits. Returns its pid."""
        return self._ask("start", function, *arguments)

    def kill(self, pid: int) -> int:
        """Kills with SIGKILL, unless it has ended; the exit status as subprocess gives it."""
        return self._ask("kill", pid)

    def wait(self, pid: int) -> int:
        """Waits for the end; the exit status, negative for a signal."""
        return self._ask("wait", pid)

    def _ask(self, *request: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def serve(module: Any) -> None:
    """Answers requests on standard input until it ends."""
    children: set[int] = set()
    for line in sys.stdin:
        verb, first, *arguments = json.loads(line)
        if verb == "start":
            answer = fork(getattr(module, first), arguments)
            children.add(answer)
        else:
            if verb == "kill":
                os.kill(first, signal.SIGKILL)  # not reaped yet: the pid is still its own
            answer = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
            children.discard(first)
        print(answer, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def fork(function: Callable[..., object], arguments: list[Any]) -> int:
    """The pid of a child that calls the function; its exit status is 1 if that raises."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(import_module(sys.argv[1]))
