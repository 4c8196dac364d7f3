"""Writes checkpoints in a loop until it is killed; forked by the nursery, or run by hand::

python -m tests.faults.writer FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from amortized.fit import checkpoint
from tests.fit.saved import same, save, state_of

KEEP = 3
SIZE = 3000

# The lines that a kill can come between.
WATCHED = ("checkpoint.py", "checkpoint_files.py", "checkpoint_metadata.py", "shutil.py")

torch.set_num_threads(1)


def write_forever(root: str, done: str) -> None:
    """Goes on from the newest checkpoint; each step is noted in a file when it is written."""
    parent = os.getppid()
    step = last_step(Path(root))
    while os.getppid() == parent:
        step += 1
        save(Path(root), step, size=SIZE, keep=KEEP)
        with open(done, "a", encoding="ascii") as file:
            file.write(f"{step}\n")


def last_step(root: Path) -> int:
    """The step of the newest checkpoint, whose content must be what was written for it."""
    if not checkpoint.listed(root):
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoint.newest(root)
    if not same(found.state, state_of(found.metadata["step"], SIZE)):
        raise ValueError(f"{found.path} holds something else than was written")
    return found.metadata["step"]


def write_until_line(root: str, step: int, line: int) -> None:
    """Writes one checkpoint and kills itself before the line of that number is run."""
    left = line

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in WATCHED:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return watch

    sys.settrace(watch)
    save(Path(root), step, keep=KEEP)
    sys.settrace(None)


if __name__ == "__main__":
    write_forever(sys.argv[1], os.devnull)
