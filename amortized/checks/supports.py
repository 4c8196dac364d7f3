"""Supports: in words, and whether what a guide draws can happen under the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import constraints

from amortized.checks.places import family, place
from amortized.checks.report import Finding
from amortized.estimators.base import wrappers_of
from amortized.programs.survey import Statement, Survey, fits, outside_support


@dataclass(frozen=True)
class Range:
    """Where a number may lie."""

    low: float
    high: float
    whole: bool = False
    """Whole numbers only."""

    def words(self) -> str:
        """In words."""
        low, high = self.low, self.high
        numbers = "whole numbers" if self.whole else "numbers"
        if (low, high) == (-math.inf, math.inf):
            return "all real numbers"
        if self.whole and (low, high) == (0, 1):
            return "0 and 1"
        if high == math.inf:
            return f"{numbers} from {low:g} up"
        if low == -math.inf:
            return f"{numbers} up to {high:g}"
        count = f" ({high - low + 1:g} values)" if self.whole else ""
        return f"{numbers} from {low:g} to {high:g}{count}"


def support_words(fn: Any) -> str:
    """The support of a distribution in words.

    >>> import pyro.distributions as dist
    >>> support_words(dist.Poisson(3.0)), support_words(dist.Beta(1.0, 1.0).expand([2]).to_event(1))
    ('whole numbers from 0 up', 'numbers from 0 to 1')
    """
    found = support_range(fn)
    if found is not None:
        return found.words()
    try:
        support = _element(fn.support)
    except (NotImplementedError, AttributeError):
        return "its support"
    if type(support).__name__ == "_Multinomial":
        return f"counts whose sum is at most {torch.as_tensor(support.upper_bound).max():g}"
    return {
        "_Simplex": "probabilities that sum to 1",
        "_OneHot": "one-hot vectors",
        "_LowerCholesky": "lower triangular matrices with a positive diagonal",
        "_CorrCholesky": "Cholesky factors of correlation matrices",
        "_PositiveDefinite": "positive definite matrices",
    }.get(type(support).__name__, f"its support ({support})")


def support_range(fn: Any) -> Range | None:
    """The range of the values of a distribution; None where they are no plain numbers."""
    try:
        return _range(_element(fn.support))
    except (NotImplementedError, AttributeError):
        return None


def outside_elements(fn: Any, value: torch.Tensor) -> torch.Tensor | None:
    """Which elements of a value lie outside the support, event dims of ``to_event`` kept apart."""
    try:
        return ~_element(fn.support).check(value)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return None


def support_findings(guide: Survey, model: Survey) -> Iterator[Finding]:
    """Latents whose guide leaves the model's support, or cannot reach most of it."""
    for name, q in guide.latents.items():
        p = model.statements.get(name)
        if p is None or p.observed or q.fn.event_shape != p.fn.event_shape:
            continue
        if _may_leave(q, p):
            yield Finding(
                "error",
                "support-mismatch",
                name,
                place(q),
                f"{family(q)} gives {support_words(q.fn)}",
                f"values of the model's {family(p)}: {support_words(p.fn)}",
                _remedy(q, p),
            )
        elif _misses(q, p):
            yield Finding(
                "warning",
                "support-mismatch",
                name,
                place(q),
                f"{family(q)} gives only {support_words(q.fn)}",
                f"all that the model's {family(p)} allows: {support_words(p.fn)}",
                f"what the guide cannot draw is never inferred: give it {support_words(p.fn)}, "
                f"as dist.{family(p)} does",
            )


def _remedy(q: Statement, p: Statement) -> str:
    """What to put into the guide instead."""
    if family(q) == "Delta":
        return (
            "give the point estimate the support as its constraint: pyro.param(name, init, "
            f"constraint={_constraint(p)})"
        )
    remedy = f"let the guide give {support_words(p.fn)}: dist.{family(p)}"
    found = support_range(p.fn)
    if found is not None and not found.whole:
        remedy += (
            ", dist.LogNormal for positive numbers, or dist.TransformedDistribution of a Normal"
        )
    return remedy


def _constraint(p: Statement) -> str:
    """The constraint of a parameter that stands for a value of this statement, as one writes it."""
    found = support_range(p.fn)
    if found is not None and not found.whole:
        if (found.low, found.high) == (0, math.inf):
            return "constraints.positive"
        if (found.low, found.high) == (0, 1):
            return "constraints.unit_interval"
        if math.isinf(found.high):
            return f"constraints.greater_than({found.low:g})"
        if not math.isinf(found.low):
            return f"constraints.interval({found.low:g}, {found.high:g})"
    names = {"_Simplex": "simplex", "_LowerCholesky": "lower_cholesky"}
    names |= {"_CorrCholesky": "corr_cholesky", "_PositiveDefinite": "positive_definite"}
    try:
        kind = type(_element(p.fn.support)).__name__
    except (NotImplementedError, AttributeError):
        kind = ""
    return f"constraints.{names[kind]}" if kind in names else f"dist.{family(p)}(...).support"


def unchecked(fn: Any) -> bool:
    """Whether the user switched the distribution's own argument checks off."""
    layers = [*wrappers_of(fn)]
    base = layers[-1].base_dist if layers else fn
    return vars(base).get("_validate_args") is False


def _may_leave(q: Statement, p: Statement) -> bool:
    if unchecked(p.fn):
        return False
    if _drawn_outside(q, p):
        return True
    ours, theirs = _ranges(q, p)
    if ours is None or theirs is None:
        return False
    if ours.whole != theirs.whole:
        return True
    return ours.low < theirs.low or ours.high > theirs.high


def _drawn_outside(q: Statement, p: Statement) -> bool:
    if p.replayed or not isinstance(q.value, torch.Tensor) or bool(q.value.isnan().any()):
        return False
    if fits(p.fn, q.value):
        return False
    outside = outside_support(p.fn, q.value)
    return outside is not None and bool(outside.any())


def _misses(q: Statement, p: Statement) -> bool:
    """Whether the guide covers a bounded part of something larger by construction."""
    ours, theirs = _ranges(q, p)
    if ours is None or theirs is None or (ours.low <= theirs.low and ours.high >= theirs.high):
        return False
    if ours.whole:
        return True
    # two bounded intervals are a matter of taste, half of an unbounded one is not
    return math.isinf(theirs.low) or math.isinf(theirs.high)


def _ranges(q: Statement, p: Statement) -> tuple[Range | None, Range | None]:
    """The ranges of guide and model, where the class of the distribution is a reason to judge."""
    # a Delta and a straight-through draw are judged by their values; the codomain of a chain of
    # transforms is only a bound of what it gives
    if family(q) in ("Delta", "TransformedDistribution") or "StraightThrough" in family(q):
        return None, None
    if family(p) in ("Delta", "TransformedDistribution"):
        return None, None
    return support_range(q.fn), support_range(p.fn)


def _element(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _range(support: Any) -> Range | None:
    """The range of a support of numbers, over all elements; None for structured values."""
    if support is constraints.boolean:
        return Range(0, 1, whole=True)
    kind = type(support).__name__
    whole = kind in ("_IntegerInterval", "_IntegerGreaterThan", "_IntegerLessThan")
    if kind in ("_Real", "_IndependentReal"):
        return Range(-math.inf, math.inf)
    if kind in ("_GreaterThan", "_GreaterThanEq", "_IntegerGreaterThan"):
        return Range(_least(support.lower_bound), math.inf, whole)
    if kind in ("_LessThan", "_IntegerLessThan"):
        return Range(-math.inf, _greatest(support.upper_bound), whole)
    if kind in ("_Interval", "_HalfOpenInterval", "_IntegerInterval"):
        return Range(_least(support.lower_bound), _greatest(support.upper_bound), whole)
    return None


def _least(bound: Any) -> float:
    return float(torch.as_tensor(bound).min())


def _greatest(bound: Any) -> float:
    return float(torch.as_tensor(bound).max())
