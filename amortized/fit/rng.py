"""Seeds that are local to a call, and generator states that a file can hold."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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
        pyro.set_rng_seed(operator.index(seed))  # numpy's integers too
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


def torch_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The state of torch's generators, on the CPU and on every GPU in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), list(cuda)


def restore_torch(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Puts them back."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def rewinding(own: Iterable[torch.Generator] = ()) -> Callable[[], None]:
    """What puts torch's generators, and some of a program's own, back where they are now.

    >>> back = rewinding()
    >>> x = torch.rand(2)
    >>> back()
    >>> bool((torch.rand(2) == x).all())
    True
    """
    state, others = torch_state(), [(generator, generator.get_state()) for generator in own]

    def back() -> None:
        restore_torch(state)
        for generator, before in others:
            generator.set_state(before)

    return back


def rng_state() -> dict[str, Any]:
    """The state of every global generator, as tensors, numbers, strings and tuples.

    >>> state = rng_state()
    >>> x = torch.rand(2)
    >>> restore_rng(state)
    >>> bool((torch.rand(2) == x).all())
    True
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Puts the global generators where `rng_state` found them.

    The state of GPUs that this machine lacks is left out.
    """
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda.cpu(), device)
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
