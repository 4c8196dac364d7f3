"""Small checkpoints whose content follows from their step, and a comparison bit for bit."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch

from amortized.fit import checkpoint


def state_of(step: int, size: int = 6) -> dict[str, Any]:
    """One value of every kind that training saves; no two steps have an equal state."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(size, 4, generator=generator)
    return {
        "parameters": {"decoder.weight": weight, "decoder.bias": weight.sum(1).bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "exp_avg": weight.double() / 3}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0], "fused": None}],
        },
        "scheduler": {"milestones": Counter([5, 7, 7]), "last_epoch": step},
        "buffers": OrderedDict(seen=torch.arange(step, step + 3), empty=torch.zeros(0, 3)),
        "generators": {"torch": generator.get_state(), "python": (3, (2**40, step), None)},
        "note": f"step {step}",
    }


def save(root: Path, step: int, size: int = 6, **changes: Any) -> Path:
    """Writes the checkpoint of a step."""
    state = state_of(step, size)
    given: dict[str, Any] = {
        "step": step,
        "epoch": step // 2,
        "metrics": {"val_loss": 0.5**step},
        "config": {"lr": 1e-3, "hidden": [64, 8], "name": "vae"},
        "parameters": state["parameters"],
    }
    return checkpoint.write(root, changes.pop("state", state), **(given | changes))


def names(root: Path) -> list[str]:
    """Everything below a folder, hidden names too."""
    return sorted(path.name for path in root.iterdir())


def same(left: Any, right: Any) -> bool:
    """Equal types, structure, dtypes, shapes and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and bits(left) == bits(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
