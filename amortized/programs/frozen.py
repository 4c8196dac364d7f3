"""log q with its parameters frozen and its values attached: the guide run again on constants.

Closures cannot be frozen from outside. But on constant values log q depends on parameters in no
other way than directly, so subtracting its gradient leaves the gradient through the values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amortized.errors import ProgramError
from amortized.programs.handlers import GuideHandler
from amortized.programs.modules import buffers_aside
from amortized.programs.records import Run, SiteRecord
from amortized.programs.terms import log_q_of


def direct_terms(
    guide: Callable[..., Any],
    run_guide: Callable[[GuideHandler], GuideHandler],
    drawn: GuideHandler,
    leaves: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """log q of every site at constant values; empty where no site has its log q frozen.

    Args:
        guide: the program, whose buffers (running means) the second run must not move.
        run_guide: runs it under a handler.
        drawn: the first run.
        leaves: values that stand in for drawn ones, so that log q has slopes in them.
    """
    if not _asked(drawn) or not torch.is_grad_enabled():
        return {}
    records = drawn.records
    values = {name: r.value.detach() for name, r in records.items() if not r.observed}
    context = replace(
        drawn.context,
        choose=None,
        script=None,
        fixed={**(drawn.context.fixed or {}), **drawn.subsamples, **values, **leaves},
        drawn_by={name: r.estimator for name, r in records.items() if r.estimator is not None},
    )
    with buffers_aside(guide):
        again = run_guide(GuideHandler(context, runs_model=drawn.runs_model)).records
    return {name: log_q_of(again[name]) for name in records if name in again}


def leaves_of_frozen(drawn: GuideHandler) -> dict[str, Tensor]:
    """The values of the sites whose log q is frozen, cut off from the guide, with slopes."""
    if not torch.is_grad_enabled():
        return {}
    return {record.name: record.value.detach().requires_grad_() for record in _asked(drawn)}


def _asked(drawn: GuideHandler) -> list[SiteRecord]:
    return [r for r in drawn.records.values() if r.estimator is not None and r.estimator.frozen]


def refuse_random_guides(run: Run) -> None:
    """Compare the two runs of the guide.

    Raises:
        ProgramError: log q differs on the same values, so what was taken out is another gradient.
    """
    for name, record in run.guide.items():
        if record.estimator is None or not record.estimator.frozen:
            continue
        if run.direct and (name not in run.direct or _differs(run.direct[name], record)):
            raise ProgramError(
                f"site {name!r}: {record.estimator!r} runs the guide again on the same values, and "
                "its log q was another one: the guide is random outside its sample statements "
                "(dropout), or changes what it reads; use am.Pathwise() here, or take that "
                "randomness out"
            )


def _differs(again: Tensor, record: SiteRecord) -> bool:
    first = log_q_of(record).detach()
    again = again.detach()
    if again.shape != first.shape:
        return True
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    close = (again - first).abs() <= tolerance * (1 + first.abs())
    return not bool((close | (again == first) | (again.isnan() & first.isnan())).all())
