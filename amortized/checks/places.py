"""Words for places and shapes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch

from amortized.errors import quoted
from amortized.estimators.base import base_of
from amortized.programs.survey import Frame, Statement

_ROWS = 3


def place(statement: Statement) -> str:
    """The site, its program and its plates."""
    side = "model" if statement.in_model else "guide"
    plates = ", ".join(map(plate_words, statement.frames))
    around = f" (plates: {plates})" if plates else ""
    return f"site {statement.name!r} of the {side}{around}"


def plate_words(frame: Frame) -> str:
    """A plate with its size and dim."""
    size = f"{frame.size} of {frame.full}" if frame.full != frame.size else f"{frame.size}"
    return f"{frame.name!r} {size}" + ("" if frame.dim is None else f" at dim {frame.dim}")


def shape_words(shape: Sequence[int], statement: Statement) -> str:
    """A shape, and where plates or events have names for its dims: ``[data=64 | 8]``.

    >>> import pyro.distributions as dist
    >>> frame = Frame("data", -1, 64, 64)
    >>> z = Statement("z", True, dist.Normal(torch.zeros(64, 8), 1).to_event(1), None, False,
    ...               (frame,), {}, 1.0, None)
    >>> shape_words((5, 64, 8), z)
    '(5, 64, 8) = [5, data=64 | 8]'
    """
    event_dim = len(statement.fn.event_shape)
    split = max(0, len(shape) - event_dim)
    plates = statement.plates
    names = []
    for position, size in enumerate(shape[:split]):
        frame = plates.get(position - split)
        names.append(f"{size}" if frame is None else f"{frame.name}={size}")
    plain = f"{tuple(shape)}"
    if not event_dim and not any("=" in name for name in names):
        return plain
    right = " | " + ", ".join(map(str, shape[split:])) if event_dim else ""
    return f"{plain} = [{', '.join(names)}{right}]"


def family(statement: Statement) -> str:
    """The name of a statement's distribution."""
    return type(base_of(statement.fn)).__name__


def law_words(statement: Statement) -> str:
    """A distribution with its shape."""
    shape = tuple(statement.fn.batch_shape) + tuple(statement.fn.event_shape)
    return f"{family(statement)} of shape {shape_words(shape, statement)}"


def written_shape(statement: Statement) -> tuple[int, ...]:
    """The shape of a distribution as the program wrote it, before plates expanded it.

    >>> import pyro.distributions as dist
    >>> law = dist.Normal(torch.zeros(4, 1), 1.0).expand([4, 4])
    >>> written_shape(Statement("x", True, law, None, True, (), {}, 1.0, None))
    (4, 1)
    """
    shape = list(statement.fn.batch_shape)
    tensors = [t for t in vars(base_of(statement.fn)).values() if isinstance(t, torch.Tensor)]
    for dim in range(-len(shape), 0):
        # an expanded dim has stride 0: nothing of its own is stored for its elements
        own = [t for t in tensors if t.dim() >= -dim and t.stride(dim) != 0 and t.shape[dim] > 1]
        if tensors and not own:
            shape[dim] = 1
    return tuple(shape) + tuple(statement.fn.event_shape)


def names_words(names: Iterable[str], most: int = 8) -> str:
    """Quoted names, the first few of many; or 'none'.

    >>> names_words(["b", "a", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    return quoted(sorted(names), most) or "none"


def similar(name: str, names: Iterable[str]) -> str | None:
    """The closest name, if one is close."""
    return next(iter(get_close_matches(name, sorted(names), 1)), None)


def rows_words(rows: Sequence[int]) -> str:
    """How many rows and the first few.

    >>> rows_words([3, 17, 40, 41, 50])
    '5 rows (3, 17, 40 and 2 more)'
    >>> rows_words([7])
    'row 7'
    """
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = len(rows) - _ROWS
    first = ", ".join(map(str, rows[:_ROWS]))
    return f"{len(rows)} rows ({first}{f' and {more} more' if more > 0 else ''})"


def range_words(values: torch.Tensor) -> str:
    """The least and the greatest of the values."""
    low, high = values.min().item(), values.max().item()
    return f"{low:.4g}" if low == high else f"values from {low:.4g} to {high:.4g}"


def shortened(text: str, width: int = 300) -> str:
    """Text on one line, cut where it is long."""
    return textwrap.shorten(text.rstrip("."), width, placeholder=" ...")
