"""A process that ``torchrun`` has started among others: its group, its device, its voice."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist

from amortized.errors import UsageError, WorkerError
from amortized.fit.distributed import current_group

# the first message of a group that cannot meet is otherwise waited for half an hour
_TO_MEET = timedelta(minutes=5)


@final
class Launch:
    """How a process was started.

    Attributes:
        device: where it trains: a GPU of its own, where GPUs are asked for.
        launcher: the process that started it, and would start it anew if one died; None: nobody.
    """

    def __init__(self, device: str | None, launcher: str | None = None, store: Any = None) -> None:
        self.device, self.launcher = device, launcher
        self._store = store

    def said(self, error: Exception) -> bool:
        """Whether another process says what this error is: of several, one prints."""
        if isinstance(error, WorkerError) and error.told:
            return True
        if self._store is None:
            return False
        try:
            return self._store.add(f"said {type(error).__name__}", 1) > 1
        except RuntimeError:  # who kept the store has ended
            return False


@contextlib.contextmanager
def launched(device: str | None) -> Iterator[Launch]:
    """Around a run: joins the processes that torchrun has started, and only the first one prints.

    Args:
        device: as asked for; ``"auto"`` and ``"cuda"`` are this process's GPU.

    Raises:
        UsageError: fewer GPUs than processes on this machine.
    """
    around = os.environ
    launcher = this_launcher(around)
    if int(around.get("WORLD_SIZE", 1)) < 2 or "RANK" not in around or dist.is_initialized():
        yield Launch(device, launcher)
        return
    device, backend = device_among(device, around)
    meet, prefix = dist.rendezvous, dist.PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    store, rank, size = next(iter(meet("env://", timeout=_TO_MEET)))
    if around.get("LOCAL_WORLD_SIZE") == around["WORLD_SIZE"]:
        # a launcher on one machine may keep its store, with addresses of those that have died;
        # those on several count their attempts each for itself, and have a new store each time
        store = prefix(f"attempt {around.get('TORCHELASTIC_RESTART_COUNT')}", store)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        with contextlib.ExitStack() as stack:
            if not current_group().writes:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield Launch(device, launcher, prefix("amortized", store))
    finally:
        sys.stdout.flush()
        if dist.is_initialized():
            dist.destroy_process_group()


def this_launcher(environment: Mapping[str, str]) -> str | None:
    """Names the launcher that has started this process: no other, of whatever time, has the name.

    >>> this_launcher({}) is None
    True
    """
    run = environment.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    parent, started = os.getppid(), "?"
    given = f"TORCHELASTIC_RUN_ID={run}\0".encode()
    try:
        # a script may stand between: it has what the launcher gave its children
        while given in Path(f"/proc/{parent}/environ").read_bytes():
            parent = int(_status_of(parent)[1])
        # numbers of processes come again; with the time of its start, one is one
        started = _status_of(parent)[19]
    except (OSError, IndexError):  # not on Linux, or not ours to read
        pass
    return f"{run} {socket.gethostname()} {parent} {started}"


def _status_of(process: int) -> list[str]:
    """What Linux says of a process: its state, its parent, and so on."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def device_among(device: str | None, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The device of a process, and the backend that serves it.

    Raises:
        UsageError: fewer GPUs than processes on this machine.

    >>> device_among("cpu", {})
    ('cpu', 'gloo')
    """
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device, "nccl" if device is not None and device.startswith("cuda") else "gloo"
    local = int(environment.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"device={device!r}: process {local} of this machine has no GPU of its own, since "
            f"there are {torch.cuda.device_count()}; start as many with --nproc-per-node, or pass "
            "device='cpu'"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}", "nccl"
