"""Starts several processes and gathers what they found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]


def together(size: int, folder: Path, *jobs: str, codes: tuple[int, ...] | None = None) -> Any:
    """What each job gave, by its name: one result a process."""
    folder.mkdir(parents=True, exist_ok=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fit.processes", str(rank), str(size), str(folder), *jobs],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=500)[0] for process in running]
    ended = tuple(process.returncode for process in running)
    assert ended == (codes or (0,) * size), "\n".join(said)
    return results(size, folder, *jobs)


def results(size: int, folder: Path, *jobs: str) -> Any:
    """What the jobs of processes that have ended gave."""
    return {
        job: [
            torch.load(folder / f"{job}-{rank}.pt", weights_only=False)
            for rank in range(size)
            if (folder / f"{job}-{rank}.pt").exists()
        ]
        for job in jobs
    }
