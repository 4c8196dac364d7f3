"""One of them: ``python -m tests.fit.processes RANK SIZE FOLDER JOB...``; results go to FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.fit.processes import jobs, losses, unlike


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    known = {**vars(unlike), **vars(losses), **vars(jobs)}
    for name in sys.argv[4:]:
        found = known[name](folder)
        torch.save(found, folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


main()
