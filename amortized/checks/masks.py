"""A latent's two terms belong together: what hides or scales one has to do so with the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from amortized.checks.places import place
from amortized.checks.report import Finding
from amortized.programs.survey import Statement, Survey
from amortized.programs.terms import masks_of

_ROUNDING = 1e-6


def mask_findings(guide: Survey, model: Survey) -> Iterator[Finding]:
    """Latents that are masked or scaled in one program and not in the other."""
    for name, ours in guide.latents.items():
        theirs = model.statements.get(name)
        if theirs is None or theirs.observed or ours.frames != theirs.frames:
            continue
        yield from _masks(ours, theirs)
        yield from _scales(ours, theirs)


def _masks(ours: Statement, theirs: Statement) -> Iterator[Finding]:
    try:
        guide, model = torch.broadcast_tensors(_visible(ours), _visible(theirs))
    except RuntimeError:  # shapes that do not fit are named elsewhere
        return
    for hides, counts, here, there in ((model, guide, theirs, ours), (guide, model, ours, theirs)):
        alone = int((counts & ~hides).sum())
        if alone:
            sides = ("model", "guide") if here.in_model else ("guide", "model")
            yield Finding(
                "warning",
                "mask-mismatch",
                ours.name,
                place(there),
                f"its log-probability counts in {alone} of {counts.numel()} places where the "
                f"{sides[0]} masks it: there the bound is off by the other term",
                "the same mask in both programs (obs_mask hides what is observed in the model)",
                f"put the statement of the {sides[1]} under the same mask: with "
                f"poutine.mask(mask=...), for obs_mask=seen with mask=~seen",
            )


def _scales(ours: Statement, theirs: Statement) -> Iterator[Finding]:
    guide, model = _number(ours.scale), _number(theirs.scale)
    if guide is None or model is None or abs(guide - model) <= _ROUNDING * abs(guide):
        return
    yield Finding(
        "warning",
        "scale-mismatch",
        ours.name,
        place(ours),
        f"it counts {guide:g} times in the guide and {model:g} times in the model",
        "the same scale in both programs",
        "put both statements under the same poutine.scale, or weigh the KL with kl_weight= of fit",
    )


def _visible(statement: Statement) -> Tensor:
    """True where the statement counts, in its batch shape."""
    shape = tuple(statement.fn.batch_shape)
    visible = torch.ones(shape, dtype=torch.bool)
    for law, mask in masks_of(statement.fn, statement.mask):
        # mask=False is said on purpose: a term that is given elsewhere
        if isinstance(mask, Tensor) and tuple(law.batch_shape) == shape:
            visible = visible & mask.bool().cpu()
    return visible


def _number(scale: Any) -> float | None:
    if isinstance(scale, Tensor):
        return float(scale) if scale.numel() == 1 else None
    return float(scale)
