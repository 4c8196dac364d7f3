"""Memory at hand: how much is free, what a run takes, and whether there was too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, final

import torch
from torch import Tensor, UntypedStorage

from amortized.compare.memory import NewMemory
from amortized.fit.data import batch_length, map_tensors
from amortized.fit.rng import restore_torch, torch_state
from amortized.programs.batches import leaves_of

T = TypeVar("T")

# How torch says it on a CPU (Linux, Windows), on Apple's GPU, and from inside of cuBLAS.
_WORDS: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
)
_SYSTEM: Final = Path("/proc/meminfo")
# Of a container, versions 2 and 1: its folder, limit, and use.
_GROUPS: Final = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_bytes(device: torch.device) -> int | None:
    """What a run on a device could still take: None where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    found = [_available(), *(_left(*group) for group in _GROUPS)]
    return min((size for size in found if size is not None), default=None)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory was not enough.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory")), is_out_of_memory(ValueError("x"))
    (True, False)
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _WORDS):
            return True
        error = error.__cause__
    return False


@final
class Footprint(NewMemory):
    """Counts the bytes of every new tensor of a run: at least what the run holds at any time.

    >>> with Footprint() as footprint:
    ...     y = torch.zeros(5, 2).exp().reshape(2, 5)
    >>> footprint.bytes
    80
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def add(self, storage: UntypedStorage) -> None:
        """One more."""
        self.bytes += storage.nbytes()


@final
class Parts:
    """Runs on as much of a batch as fits into memory, and remembers how many rows that were.

    Attributes:
        rows: at most so many rows at a time; None: a batch as it comes.
    """

    def __init__(self) -> None:
        self.rows: int | None = None

    def of(self, batch: Any, run: Callable[[Any], T]) -> Iterator[tuple[T, int]]:
        """What ``run`` gives for a batch or, where memory is short, for its parts; and their rows.

        A run that failed leaves torch's generators where they were. The error of a part that
        cannot be divided further goes on.
        """
        waiting = [batch]
        while waiting:
            part, *others = split(waiting.pop(0), self.rows)
            waiting = others + waiting
            rows, state = batch_length(part), torch_state()
            try:
                found = [run(part)]
            except Exception as error:
                if not is_out_of_memory(error) or not _divisible(part):
                    raise
                found = []
            if found:
                yield found.pop(), rows
            else:  # outside of the handler, which keeps the tensors of the run that failed
                recover(state)
                self.rows = rows // 2
                waiting = [part, *waiting]


def recover(state: tuple[Tensor, list[Tensor]]) -> None:
    """After a run that memory was too short for: its tensors are given back, its draws undone."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    restore_torch(state)


def split(batch: Any, rows: int | None) -> list[Any]:
    """Consecutive parts of at most so many rows; a batch that has none is left whole.

    >>> [part["x"].tolist() for part in split({"x": torch.arange(5)}, 2)]
    [[0, 1], [2, 3], [4]]
    """
    length = batch_length(batch)
    if rows is None or length <= rows or not _divisible(batch):
        return [batch]

    def part(start: int) -> Any:
        return map_tensors(lambda t: t[start : start + rows] if t.ndim else t, batch)

    return [part(start) for start in range(0, length, rows)]


def _divisible(batch: Any) -> bool:
    lengths = {tensor.shape[0] for tensor in leaves_of(batch).values() if tensor.ndim}
    return len(lengths) == 1 and max(lengths) > 1


def _available() -> int | None:
    """Of the whole machine, what files only pass through counted as free."""
    for line in _text(_SYSTEM).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _left(folder: Path, limit: str, use: str) -> int | None:
    """Of a container, the same."""
    most, used = _text(folder / limit).strip(), _text(folder / use).strip()
    if not (most.isdigit() and used.isdigit()):  # "max", or no container
        return None
    entries = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    files = sum(int(entries.get(name, 0)) for name in ("inactive_file", "active_file"))
    return max(0, int(most) - int(used) + files)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
