"""What a program file hands to the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Program:
    """A model, its guide and their data: what ``program(**options)`` in a program file returns.

    ``train``, ``val`` and ``test`` are anything that `SVI.fit` takes. The last two only serve the
    figures: ``image_shape`` is ``(height, width)`` of one observed data point when it is an image,
    and ``labels`` (shape ``[size of test]``) colours the map of its codes.

    >>> Program(model=print, guide=print, train=(), image_shape=(8, 8)).val is None
    True
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    train: Any
    val: Any = None
    test: Any = None
    image_shape: tuple[int, int] | None = None
    labels: Tensor | None = None
