"""Objectives by name, for the command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

from amortized.errors import UsageError
from amortized.objectives.base import Objective
from amortized.objectives.elbo import ELBO
from amortized.objectives.importance import IWAE, Renyi
from amortized.objectives.thermodynamic import TVO
from amortized.objectives.wake_sleep import ForwardKL, ReweightedWakeSleep

_BY_NAME: tuple[tuple[str, Callable[..., Objective]], ...] = (
    ("elbo", ELBO),
    ("iwae", IWAE),
    ("renyi", Renyi),
    ("reweighted_wake_sleep", ReweightedWakeSleep),
    ("tvo", TVO),
    ("forward_kl", ForwardKL),
)


def objective_of(
    text: str, num_particles: int | None = None, kl: Literal["sample", "analytic"] = "sample"
) -> Objective:
    """An objective from its name, with arguments after a colon.

    Args:
        text: ``"iwae"``, ``"renyi:alpha=0.5"``, ``"elbo:beta=4,free_bits=0.5"``,
            ``"tvo:partition=[0, 0.2, 1]"``; hyphens and underscores are alike.
        num_particles: where the objective has particles; None: its own default.
        kl: for the ELBO.

    Raises:
        UsageError: an unknown name or argument.

    >>> objective_of("renyi:alpha=0.5", 3)
    Renyi(alpha=0.5, num_particles=3)
    >>> objective_of("elbo", kl="analytic")
    ELBO(num_particles=1, kl='analytic')
    """
    name, _, rest = text.partition(":")
    known = dict(_BY_NAME)
    make = known.get(name.strip().lower().replace("-", "_"))
    if make is None:
        close = get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        raise UsageError(f"objective {name!r}: expected one of {', '.join(known)}{hint}")
    accepted = inspect.signature(make).parameters
    given = _arguments(name, rest, set(accepted) - {"kl", "num_particles", "observed"})
    if num_particles is not None:
        if "num_particles" not in accepted:
            raise UsageError(f"num_particles={num_particles}: objective {name!r} has no particles")
        given["num_particles"] = num_particles
    if kl != "sample":
        if "kl" not in accepted:
            raise UsageError(f"kl={kl!r}: objective {name!r} has no KL; only elbo has")
        given["kl"] = kl
    return make(**given)


def _arguments(name: str, text: str, accepted: set[str]) -> dict[str, Any]:
    expected = (
        f"objective {name!r}: expected name=value with a name among "
        f"{', '.join(sorted(accepted)) or 'none'}"
    )
    try:
        call = ast.parse(f"_({text})", mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"{expected}; found {text.strip()!r}") from error
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise UsageError(f"{expected}; found {text.strip()!r}")
    found: dict[str, Any] = {}
    for part in call.keywords:
        if part.arg is None or part.arg not in accepted:
            raise UsageError(f"{expected}; found {ast.unparse(part)!r}")
        found[part.arg] = _value(part.value)
    return found


def _value(node: ast.expr) -> Any:
    """A Python literal, or the words as they are."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
