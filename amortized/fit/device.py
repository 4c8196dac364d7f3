"""Where parameters and batches are."""

from __future__ import annotations

import torch

from amortized.errors import UsageError


def device_of(name: str | torch.device) -> torch.device:
    """A device by name; ``"auto"`` is the GPU if there is one.

    Raises:
        UsageError: no such device, or none on this machine.

    >>> device_of("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"device={name!r}: expected 'auto', 'cpu', 'cuda', 'cuda:1' or a torch.device"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} GPUs that torch can "
            "use; pass device='auto' to take one where there is one"
        )
    return device
