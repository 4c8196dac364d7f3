"""One batch object everywhere: how it becomes the arguments of a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def as_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor is one, a tuple or list many, a dict named.

    >>> as_arguments((1, 2)), as_arguments({"x": 3}), as_arguments(4)
    (((1, 2), {}), ((), {'x': 3}), ((4,), {}))
    """
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch,), {}


Leaves = dict[str, Tensor]


def leaves_of(batch: Any, name: str = "batch") -> Leaves:
    """The tensors of a batch by name: ``batch``, ``batch[0]``, ``batch['x']``."""
    if isinstance(batch, Tensor):
        return {name: batch}
    if isinstance(batch, Mapping):
        parts = [leaves_of(value, f"{name}[{key!r}]") for key, value in batch.items()]
    elif isinstance(batch, tuple | list):
        parts = [leaves_of(value, f"{name}[{place}]") for place, value in enumerate(batch)]
    else:
        return {}
    return {key: value for part in parts for key, value in part.items()}


def aliases(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The same arguments as new tensor objects, for a run that must leave no trace.

    Transforms with a cache know their last argument by its identity: a run without gradients on
    the very tensor that training uses next would answer for it.
    """
    return _alias(args), _alias(dict(kwargs))


def _alias(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.requires_grad or type(value) is not Tensor else value.detach()
    if type(value) in (tuple, list):
        return type(value)(map(_alias, value))
    if type(value) is dict:
        return {key: _alias(item) for key, item in value.items()}
    return value


def signature_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """A hashable key of everything that shapes a run: tensor shapes and dtypes, flags, strings.

    Numbers count by type only, so that an annealed float or a step counter is no new signature.
    """
    return (*map(key_of, args), *((name, key_of(kwargs[name])) for name in sorted(kwargs)))


def key_of(value: Any) -> Any:
    """A hashable key of one argument."""
    if isinstance(value, Tensor | np.ndarray):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(key_of, value))
    if isinstance(value, Mapping):
        return tuple((str(k), key_of(value[k])) for k in value)
    return type(value).__name__
