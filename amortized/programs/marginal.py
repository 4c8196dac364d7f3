"""Discrete sites of the model that are summed out: all values of each, on a dim of its own.

The sites are those that the model marks (``infer={"enumerate": "parallel"}``, as
``pyro.infer.config_enumerate`` does) and the guide lacks. Where their values lie follows Pyro's
rules: a dim for each site, left of everything else, which a site inside ``pyro.markov`` shares with
sites that are out of its reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from pyro.distributions.util import broadcast_shape
from torch import Tensor

from amortized.errors import ProgramError, quoted
from amortized.estimators.base import Site
from amortized.estimators.enumeration import Enumerate, support_of
from amortized.programs.placement import unmasked
from amortized.programs.records import LEFTMOST, Layout

# values of summed-out sites in one statement multiply: beyond this, one step would rather exhaust
# the memory
_MAX_VALUES = 2**20
_MAX_ELEMENTS = 2**27

_Dims = dict[int, str]


def marked(msg: Any) -> bool:
    """Whether a statement asks to be enumerated, in parallel or one by one."""
    return bool((msg["infer"] or {}).get("enumerate"))


@final
class Marginal:
    """Where the values of summed-out sites lie in one run of a model.

    Args:
        layout: of the run, whose dims are taken.
        pinned: one value of each site, by its place in the support, instead of all; sites that it
            lacks stand at their first.
    """

    def __init__(self, layout: Layout, pinned: Mapping[str, int] | None = None) -> None:
        self.sizes: dict[str, int] = {}
        """How many values each site has."""
        self._layout = layout
        self._pinned = pinned
        self._next = layout.free_dim
        self._everywhere: _Dims = {}
        self._depths: dict[str, int] = {}
        self._visible: dict[str, _Dims] = {}
        self._carried: dict[str, _Dims] = {}

    @property
    def places(self) -> dict[str, int]:
        """The sites and their dims."""
        return {own: dim for dims in self._carried.values() for dim, own in dims.items()}

    def enter(self, msg: Any) -> None:
        """Learn what is in reach of a statement. Every statement is shown, in order."""
        infer = msg["infer"] or {}
        scope: Mapping[str, int] | None = infer.get("_markov_scope")
        if scope is None and not self._everywhere:
            return
        visible = dict(self._everywhere)
        for name, depth in (scope or {}).items():
            # the name counts once for each context around it that is in reach still
            if self._depths.get(name) == depth:
                visible |= self._carried.get(name, {})
        if scope is not None:
            self._depths[msg["name"]] = infer["_markov_depth"]
        self._visible[msg["name"]] = visible

    def sum_out(self, msg: Any) -> None:
        """Give a statement all its values.

        Raises:
            ProgramError: they cannot be listed, or there is no dim for them.
        """
        name, law, infer = msg["name"], unmasked(msg["fn"]), msg["infer"]
        _refuse(name, law, infer)
        visible, dim = self._visible.setdefault(name, {}), self._next
        if infer.get("_markov_scope") is None:
            self._next -= 1
            self._everywhere[dim] = name
        else:
            while dim in visible:
                dim -= 1
        if dim < LEFTMOST:
            raise ProgramError(_crowded(name, visible))
        visible[dim] = name
        value = _support(law, dim)
        self.sizes[name] = len(value)
        if self._pinned is not None:
            value = self._one(value, law, self._pinned.get(name, 0))
        elif infer.get("expand", False):
            batch = broadcast_shape(value.shape[:-dim], law.batch_shape)
            value = value.expand(batch + law.event_shape)
        msg["value"], msg["done"] = value, True

    def _one(self, values: Tensor, law: Any, index: int) -> Tensor:
        """One value, with the dims that the others are broadcast over."""
        return values[index].reshape((1,) * self._layout.nesting + law.event_shape)

    def leave(self, msg: Any) -> Mapping[int, str]:
        """The dims that a finished statement may depend on.

        Raises:
            ProgramError: its values are too many, or those of a site that is out of its reach.
        """
        name = msg["name"]
        visible = self._visible.get(name)
        if not visible:
            return {}
        event = len(msg["fn"].event_shape)
        value = msg["value"].shape[: max(0, msg["value"].dim() - event)]
        self._carried[name] = {
            dim: own for dim, own in visible.items() if len(value) >= -dim and value[dim] > 1
        }
        shape = broadcast_shape(value, msg["fn"].batch_shape)
        for dim, own in visible.items():
            if len(shape) >= -dim and shape[dim] not in (1, self.sizes[own]):
                raise ProgramError(_other_size(name, own, self.sizes[own], shape[dim]))
        summed = [own for dim, own in visible.items() if len(shape) >= -dim and shape[dim] > 1]
        count = math.prod(self.sizes[own] for own in summed)
        elements = math.prod(shape)
        if count > _MAX_VALUES or elements > _MAX_ELEMENTS:
            raise ProgramError(_too_many(name, summed, count, elements))
        return visible


def _support(law: Any, dim: int) -> Tensor:
    """All values of a law on a dim: ``[C, 1, ..., 1, *event]``."""
    if law.has_enumerate_support:
        values = law.enumerate_support(expand=False)
        # by this mark a law knows its own support again, and need not look values up
        known = getattr(values, "_pyro_categorical_support", None)
    else:
        values, known = support_of(law), None
        values = values[(slice(None), *(0 for _ in law.batch_shape))]
    placed = values.reshape(len(values), *(1,) * (-dim - 1), *law.event_shape)
    if known is not None:
        placed._pyro_categorical_support = known  # pyright: ignore[reportAttributeAccessIssue]
    return placed


def _refuse(name: str, law: Any, infer: Mapping[str, Any]) -> None:
    """Raise where the support is no list, or a sample of it is asked for."""
    if infer.get("num_samples") is not None:
        raise ProgramError(
            f"site {name!r}: the model asks for {infer['num_samples']} samples of it instead of "
            "its whole support (num_samples=), and the guide does not sample it; leave "
            "num_samples= out, so that it is summed out exactly, or sample it in the guide"
        )
    reason = Enumerate().refusal(Site(name, law))
    if reason is not None:
        raise ProgramError(
            f"site {name!r}: the model marks it for enumeration and the guide does not sample it, "
            f"so it would be summed out, but {reason.split('; ')[0]}; take the mark off and give "
            f"the guide a pyro.sample({name!r}, ...)"
        )


def _other_size(name: str, own: str, values: int, size: int) -> str:
    return (
        f"site {name!r} of the model has size {size} at the dim of the summed-out site {own!r}, "
        f"which has {values} values, so what it depends on there is another site, out of its "
        "reach: inside pyro.markov a statement reaches one step back, or as many as history= says"
    )


def _crowded(name: str, visible: _Dims) -> str:
    return (
        f"site {name!r}: it would be summed out together with {len(visible)} other sites, and a "
        "tensor has no dim left for its values; run a chain inside pyro.markov(...), where sites "
        "that are out of reach share their dims, or sample some of the sites in the guide"
    )


def _too_many(name: str, summed: list[str], count: int, elements: int) -> str:
    return (
        f"site {name!r} of the model: it depends on the summed-out sites {quoted(summed, 6)} and "
        f"is evaluated at {count} joint values of them, {elements} numbers in all (at most "
        f"{_MAX_VALUES} and {_MAX_ELEMENTS}); sample some of these sites in the guide, or let it "
        "depend on fewer"
    )
