"""A tolerant look at a pair of programs: what they say, also where they are wrong.

Unlike `run_pair`, a survey stops at nothing that it can step over: it records, and leaves judging
to others. The model is shown the guide's values where they fit, and draws its prior elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized.estimators.base import base_of
from amortized.programs.run import is_guide_messenger

Program = Callable[..., Any]


@dataclass(frozen=True)
class Frame:
    """A plate around a statement; ``dim`` is None in a sequential one."""

    name: str
    dim: int | None
    size: int
    full: int


@dataclass(eq=False)
class Statement:
    """A sample statement as it was met."""

    name: str
    in_model: bool
    fn: Any
    value: Any
    observed: bool
    frames: tuple[Frame, ...]
    """Outermost first."""
    infer: Mapping[str, Any]
    scale: Any
    mask: Any
    replayed: bool = False
    """The model took the guide's value."""

    @property
    def factor(self) -> bool:
        """Whether it is a ``pyro.factor``."""
        return type(base_of(self.fn)).__name__ == "Unit"

    @property
    def auxiliary(self) -> bool:
        """Whether it is marked so."""
        return bool(self.infer.get("is_auxiliary", False))

    @property
    def plates(self) -> dict[int, Frame]:
        """The vectorized plates by dim."""
        return {frame.dim: frame for frame in self.frames if frame.dim is not None}


@dataclass(eq=False)
class PlateUse:
    """A plate as a program declared it."""

    name: str
    size: int
    indices: Tensor | None
    given: Any = None
    """``subsample=`` of the program, if it chose the rows itself."""
    drawn: bool = False
    """A random minibatch that nobody gave."""


@dataclass(eq=False)
class Announced:
    """A parameter statement: what the program offered, and what Pyro's store holds."""

    name: str
    offered: Tensor | None
    leaf: Tensor


@dataclass(eq=False)
class Survey:
    """What one program said."""

    in_model: bool
    statements: dict[str, Statement] = field(default_factory=dict)
    deterministic: set[str] = field(default_factory=set)
    repeated: list[str] = field(default_factory=list)
    plates: dict[str, PlateUse] = field(default_factory=dict)
    announced: list[Announced] = field(default_factory=list)
    error: Exception | None = None
    """What the program raised; statements after it are not known."""
    begun: Statement | None = None
    """A statement that had no value yet when the program raised."""

    @property
    def side(self) -> str:
        """The program, in words."""
        return "model" if self.in_model else "guide"

    @property
    def values(self) -> dict[str, Tensor]:
        """What was drawn, plate indices included, by name."""
        rows = {name: p.indices for name, p in self.plates.items() if p.drawn}
        drawn = {name: s.value for name, s in self.latents.items()}
        return {**{name: i for name, i in rows.items() if i is not None}, **drawn}

    @property
    def latents(self) -> dict[str, Statement]:
        """The statements that are not observed."""
        return {name: s for name, s in self.statements.items() if not s.observed}


def survey_guide(
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor] | None = None,
) -> Survey:
    """Run the guide, on given values and plate indices where they fit; record what it says."""
    handler = _Surveyor(Survey(False), values or {}, {}, runs_model=is_guide_messenger(guide))
    return _run(guide, args, kwargs, handler)


def survey_model(
    model: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    guide: Survey,
    values: Mapping[str, Tensor] | None = None,
) -> Survey:
    """Run the model on the guide's values, then on given ones, where they fit; record it."""
    values = {**(values or {}), **{name: s.value for name, s in guide.latents.items()}}
    return _run(model, args, kwargs, _Surveyor(Survey(True), values, guide.plates))


def _run(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any], handler: _Surveyor
) -> Survey:
    try:
        with handler:
            program(*args, **kwargs)
    except Exception as error:
        handler.survey.error = error
    return handler.survey


class _Surveyor(Messenger):
    """Outermost around a program."""

    def __init__(
        self,
        survey: Survey,
        values: Mapping[str, Any],
        plates: Mapping[str, PlateUse],
        runs_model: bool = False,
    ) -> None:
        super().__init__()
        self.survey = survey
        self.values = values
        self.guide_plates = plates
        self.runs_model = runs_model
        self._replayed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if not isinstance(name, str):
            raise TypeError(f"a site's name is a {type(name).__name__}, expected a string")
        if isinstance(msg["fn"], _Subsample):
            self._plate(msg)
            return
        self.survey.begun = self._statement(msg)
        if not (msg["is_observed"] or msg["done"]) and name in self.values:
            if fits(msg["fn"], self.values[name]):
                self._replayed.add(name)
                msg["value"], msg["done"] = self.values[name], True

    def _plate(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        use = PlateUse(name, fn.size, None, given=msg["value"])
        use.drawn = msg["value"] is None and fn.subsample_size not in (None, fn.size)
        if msg["value"] is None and name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        theirs = self.guide_plates.get(name)
        if msg["value"] is None and theirs is not None and theirs.size == fn.size:
            # a plate in full takes the guide's minibatch, as Pyro hands it over
            count = None if theirs.indices is None else len(theirs.indices)
            if count is not None and fn.subsample_size in (None, count):
                msg["value"], msg["done"] = theirs.indices, True
                use.drawn = False
        self.survey.plates[name] = use

    def _pyro_post_sample(self, msg: Any) -> None:
        name, survey = msg["name"], self.survey
        if isinstance(msg["fn"], _Subsample):
            survey.plates[name].indices = torch.as_tensor(msg["value"])
            return
        survey.begun = None
        if (msg["infer"] or {}).get("_deterministic"):
            survey.deterministic.add(name)
            return
        if msg["is_observed"] and self.runs_model:
            return
        if name in survey.statements:
            survey.repeated.append(name)
            return
        survey.statements[name] = self._statement(msg)

    def _statement(self, msg: Any) -> Statement:
        return Statement(
            name=msg["name"],
            in_model=self.survey.in_model,
            fn=msg["fn"],
            value=msg["value"],
            observed=msg["is_observed"],
            frames=tuple(map(_frame, msg["cond_indep_stack"])),
            infer=dict(msg["infer"] or {}),
            scale=msg["scale"],
            mask=msg["mask"],
            replayed=msg["name"] in self._replayed,
        )

    def _pyro_post_param(self, msg: Any) -> None:
        given = [a for a in msg["args"][1:] if isinstance(a, Tensor)]
        value = msg["value"]
        unconstrained = getattr(value, "unconstrained", None)
        leaf = value if unconstrained is None else unconstrained()
        offered = given[0] if given else None
        self.survey.announced.append(Announced(msg["name"], offered, leaf))


def _frame(frame: Any) -> Frame:
    full = frame.size if frame.full_size is None else frame.full_size
    return Frame(frame.name, frame.dim, int(frame.size), int(full))


def fits(fn: Any, value: Any) -> bool:
    """Whether a value may stand at a statement: shape and support."""
    if not isinstance(value, Tensor):
        return False
    try:
        shape = tuple(fn.batch_shape + fn.event_shape)
        # torch's function of this name imports sympy when it is first called: half a second
        if np.broadcast_shapes(tuple(value.shape), shape) != shape:
            return False
    except (ValueError, AttributeError):
        return False
    wrong = outside_support(fn, value)
    return wrong is None or not bool(wrong.any())


def outside_support(fn: Any, value: Tensor) -> Tensor | None:
    """Which elements lie outside the support, shape ``[*batch]``; None where nobody can say."""
    try:
        return ~fn.support.check(value)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return None
