"""Seeds that are local to a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Gives torch's, numpy's and Python's global generators back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state = get_rng_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            set_rng_state(state)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Runs under ``seed`` and restores the global generators; None: they simply go on.

    >>> before = torch.get_rng_state()
    >>> with seeded(1):
    ...     x = torch.rand(3)
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    if seed is None:
        yield
        return
    with preserved_rng():
        pyro.set_rng_seed(seed)
        yield


@contextmanager
def side_stream() -> Iterator[None]:
    """A stream of its own, determined by the global one, which does not move."""
    with preserved_rng():
        pyro.set_rng_seed(fresh_seed())
        yield


def fresh_seed() -> int:
    """A seed drawn from torch's global stream, which moves by one draw."""
    return int(torch.randint(2**31, ()))
