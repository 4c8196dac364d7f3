"""Digests of values, by which processes, trials and files can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortized.programs.batches import leaves_of


def digest_of(*parts: Any) -> str:
    """Of texts, numbers, and tensors with their bits.

    >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2)) != digest_of(torch.zeros(3))
    True
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(part.tobytes())
        elif isinstance(part, Tensor):
            value = part.detach().cpu().contiguous()
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()


def digest_of_batch(batch: Any) -> str:
    """Of the tensors of a batch, by name."""
    return digest_of(*(part for named in leaves_of(batch).items() for part in named))
