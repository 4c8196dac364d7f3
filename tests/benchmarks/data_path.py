"""What a shuffled batch costs, and what an epoch holds in memory, by where the data are.

    python -m tests.benchmarks.data_path [--most 10000000] [--columns 64] [--batch 128] [--rounds 5]

10^3 to 10^7 rows of float32 as a tensor in memory, an ``np.memmap``, a safetensors file and torch's
``DataLoader`` over a ``TensorDataset``. Times are processor time of one thread for one batch, batch
by batch in random order, with the file in the page cache. "cold" is the wall time of a batch when
the file must be read from the disk (Linux only; the disk's own cache may help).

Memory is that of a process of its own that passes over at most 2,000 batches: the most that it held
beyond its imports, without pages of mapped files, which the system takes back when it needs them.
The data in memory count. One temporary file is written, of 2.6 GB at 10^7 rows of 64 columns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

import amortized as am
from amortized.fit.data import as_batches
from tests.benchmarks.timing import Arm, interleave, show

KINDS = ("tensor", "np.memmap", "safetensors", "DataLoader")
BATCHES = 2_000
CHUNK = 2**16


def write(path: Path, rows: int, columns: int) -> None:
    """A safetensors file with one array, in chunks; a memmap reads the same bytes."""
    size = 4 * rows * columns
    entry = {"x": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, rows, CHUNK):
            shape = (min(CHUNK, rows - start), columns)
            file.write(random.standard_normal(shape, np.float32).tobytes())


def source(kind: str, path: Path, batch: int) -> Any:
    """The data as a user would pass them."""
    array = am.open_safetensors(path)["x"]
    if kind == "safetensors":
        return array
    if kind == "np.memmap":
        start = path.stat().st_size - array.nbytes
        return np.memmap(path, np.float32, "r", start, array.shape)
    tensor = torch.empty(array.shape)
    tensor.numpy()[...] = array
    if kind == "tensor":
        return tensor
    return DataLoader(TensorDataset(tensor), batch, shuffle=True)


def endless(data: Any, batch: int) -> Iterator[Any]:
    """Batches of one shuffled epoch after the other."""
    batches, generator = as_batches(data, batch), torch.Generator().manual_seed(0)
    for _ in itertools.count():
        yield from batches.epoch(generator)


def times(path: Path, batch: int, rounds: int) -> dict[str, float]:
    """Microseconds a batch by kind."""
    arms = []
    for kind in KINDS:
        batches = endless(source(kind, path, batch), batch)
        arms.append(Arm(kind, lambda batches=batches: next(batches)))
    interleave(arms, rounds)
    return {arm.name: 1e3 * arm.median for arm in arms}


def cold(path: Path, batch: int, count: int = 30) -> float | None:
    """Median milliseconds of a batch of a mapped file that is not in memory."""
    if sys.platform != "linux":
        return None
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    taken, batches = [], endless(source("np.memmap", path, batch), batch)
    next(batches)
    for _ in range(count):
        began = time.perf_counter()
        next(batches)
        taken.append(time.perf_counter() - began)
    return 1e3 * float(np.median(taken))


def held() -> int:
    """Bytes of this process, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def most_held(kind: str, path: Path, batch: int) -> int:
    """The most bytes held while batches are passed over, beyond what was held before."""
    before = most = held()
    epoch = as_batches(source(kind, path, batch), batch).epoch(torch.Generator().manual_seed(0))
    for _ in itertools.islice(epoch, BATCHES):
        most = max(most, held())
    return most - before


def memory(kind: str, path: Path, batch: int) -> float | None:
    """Megabytes, measured in another process."""
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--child", kind]
    command += ["--file", str(path), "--batch", str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


def known(number: float | None, digits: int) -> str:
    """A number, where this system tells it."""
    return "?" if number is None else f"{number:,.{digits}f}"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--most", type=int, default=10**7, help="rows at most")
    found.add_argument("--columns", type=int, default=64)
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    found.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return found


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(most_held(options.child, options.file, options.batch))
        return
    title = f"batches of {options.batch} rows of {options.columns} float32, shuffled"
    table = Table(title=f"{title}: microseconds a batch / MB held")
    for column in ("rows", "data, MB", *KINDS, "memmap cold, ms"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for rows in (10**power for power in range(3, 8) if 10**power <= options.most):
            path = Path(folder, "data.safetensors")
            write(path, rows, options.columns)
            taken = times(path, options.batch, options.rounds)
            megabytes = {kind: memory(kind, path, options.batch) for kind in KINDS}
            cells = [f"{taken[kind]:,.1f} / {known(megabytes[kind], 0)}" for kind in KINDS]
            size = f"{4e-6 * rows * options.columns:,.1f}"
            table.add_row(f"{rows:,}", size, *cells, known(cold(path, options.batch), 2))
    show(table)


if __name__ == "__main__":
    main()
