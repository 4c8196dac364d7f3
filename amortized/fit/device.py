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
    expected = "expected 'auto', 'cpu', 'cuda', 'cuda:1' or a torch.device"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device={name!r}: there is no such device; {expected}") from error
    if device.type == "meta":
        raise UsageError(f"device={name!r}: it holds no numbers to train on; {expected}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} GPUs that torch can "
            "use; pass device='auto' to take one where there is one"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise UsageError(f"device={name!r}: torch cannot use it here; {expected}") from error
    return device
