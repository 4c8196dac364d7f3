"""Arguments that other batches may leave out, such as labels, and networks that only some use."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn

from amortized.checks.calls import Calls
from amortized.checks.inventory import Inventory
from amortized.programs.run import Program
from amortized.programs.survey import survey_guide, survey_model


def may_vary(programs: tuple[Program, Program], args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether other batches may come with other arguments, such as labels or none."""
    given = (*args, *kwargs.values())
    return any(value is None for value in given) or any(map(_takes_none, programs))


def excused(
    programs: tuple[Program, Program],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    known: Inventory,
    called: Calls,
) -> set[int]:
    """Parameters of networks that this batch did not use, and another one may."""
    idle = known.idle(called.modules.keys())
    if not idle or not may_vary(programs, args, kwargs):
        return set()
    # a network that was called and takes no option would do the same on every batch
    for network in known.networks:
        if id(network) in called.modules and not _takes_none(network):
            idle -= {id(p) for p in network.parameters()}
    if not idle or any(_lacks_one(program, args, kwargs) for program in programs):
        return idle
    # with everything given, what would be used without is known
    model, guide = programs
    without = Calls(known.networks)
    with without.recorded():
        drawn = survey_guide(guide, *_left_out(guide, args, kwargs))
        seen = survey_model(model, *_left_out(model, args, kwargs), drawn)
    if drawn.error is not None or seen.error is not None:
        return idle
    return idle - known.idle(without.modules.keys())


def _takes_none(program: Program) -> bool:
    """Whether a program has an argument whose default is None."""
    takes = program.forward if isinstance(program, nn.Module) else program
    try:
        return any(p.default is None for p in signature(takes).parameters.values())
    except (TypeError, ValueError):
        return False


def _lacks_one(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether one of these arguments is left out or None."""
    if any(value is None for value in (*args, *kwargs.values())):
        return True
    try:
        bound = signature(program).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return True
    optional = (name for name, p in bound.signature.parameters.items() if p.default is None)
    return any(name not in bound.arguments for name in optional)


def _left_out(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with None for those that may be None."""
    bound = signature(program).bind(*args, **kwargs)
    for name, parameter in bound.signature.parameters.items():
        if parameter.default is None:
            bound.arguments[name] = None
    return bound.args, bound.kwargs
